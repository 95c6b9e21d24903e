"""A prompt that begins as an earlier one: what is taken from there has the bits of reading it again."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'foretoken[transformers]'")

import torch

from foretoken import load
from foretoken.core.draft import Draft
from foretoken.engines.transformers import target as targets
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.memory import prefixes as of_memory
from foretoken.memory.prefixes import Prefixes
from helpers.shapes import CONFIGS, VOCAB, tiny_model

BLOCK = 256  # the models are small
LENGTH = BLOCK + 40


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for module in (of_memory, targets):
        monkeypatch.setattr(module, "BLOCK", BLOCK)


def text(length: int, seed: int) -> list[int]:
    return torch.randint(1, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def read(model: Any, prompt: list[int], prefixes: Prefixes) -> tuple[Any, int, torch.Tensor]:
    """The target after reading a prompt, how much of it was kept, and the logits after it."""
    target = TransformersTarget(model)
    prefix = prefixes.of("a")
    target.reuse(prefix)
    scores: Any = target.prefill(prompt)
    return target, prefix.num_found, scores.logits


def states(target: Any) -> list[torch.Tensor]:
    return [part for layer in target.cache.states.layers for part in (layer.keys, layer.values)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", CONFIGS)
def test_every_bit_is_that_of_reading_the_prompt_anew(shape, dtype):
    model = tiny_model(shape, dtype=dtype)
    first, rest = text(LENGTH, 1), text(60, 2)
    second = first[: BLOCK + 7] + rest
    kept = Prefixes(1 << 30)
    _, num_found, _ = read(model, first, kept)
    assert num_found == 0
    again, num_found, logits = read(model, second, kept)
    anew, none_found, expected = read(model, second, Prefixes(1 << 30))
    assert (num_found, none_found) == (BLOCK, 0)
    assert torch.equal(logits, expected)
    for part, wanted in zip(states(again), states(anew), strict=True):
        assert torch.equal(part, wanted)
    # What an answer writes does not reach what is kept.
    again.score(5, Draft((6, 7, 8), (-1, -1, 0)) if again.supports_trees else Draft.chain([6, 7]))
    again.keep((1,) if again.supports_trees else (0,))
    third, num_found, logits = read(model, second, kept)
    assert num_found == BLOCK and torch.equal(logits, expected)
    for part, wanted in zip(states(third), states(anew), strict=True):
        assert torch.equal(part, wanted)


def test_what_an_answer_computed_itself_is_not_kept():
    """The rows of an answer are of other shapes than those of a prompt, and so may be their bits."""
    model = tiny_model("llama")
    kept, prompt = Prefixes(1 << 30), text(BLOCK - 2, 3)
    target, _, _ = read(model, prompt, kept)
    for token in (1, 2, 3):
        target.score(token, Draft())
        target.keep(())
    _, num_found, _ = read(model, [*prompt, 1, 2, 3], kept)
    assert num_found == 0


@pytest.mark.parametrize("shape", ["qwen3_next", "lfm2"])
def test_a_recurrent_state_is_not_kept(shape):
    model, kept, prompt = tiny_model(shape), Prefixes(1 << 30), text(LENGTH, 1)
    expected: Any = TransformersTarget(model).prefill(prompt)
    for _ in range(2):
        _, num_found, logits = read(model, prompt, kept)
        assert num_found == 0 and kept.nbytes == 0 and torch.equal(logits, expected.logits)


def test_a_cache_that_was_given_is_left_alone():
    from transformers import DynamicCache

    model, kept = tiny_model("llama"), Prefixes(1 << 30)
    target = TransformersTarget(model, cache=DynamicCache(config=model.config))
    target.reuse(kept.of("a"))
    target.prefill(text(LENGTH, 1))
    assert kept.nbytes == 0


@pytest.mark.parametrize(("dtype", "exact"), [("float32", False), ("float32", True), ("bfloat16", True)])
def test_a_conversation_says_the_same_with_and_without(dtype, exact):
    """Three turns, plain and drafted; and the control, that something was kept."""
    lm = load("tiny", dtype=dtype, background=None, exact=exact)
    texts: dict[tuple[int, str], list[str]] = {}
    for room in (0, 1 << 30):
        for drafter in ("none", "mixed"):
            lm.prefixes, turns = Prefixes(room), [{"role": "user", "content": "Tell me of ships and harbours. " * 30}]
            for turn in range(3):
                answer = lm.generate(
                    turns, max_new_tokens=16, temperature=0.8, seed=turn, drafter=drafter, namespace=f"{room}{drafter}"
                )
                texts.setdefault((room, drafter), []).append(answer.text)
                turns += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "And then? " * 9}]
            assert (lm.prefixes.num_hits > 0) == (room > 0)
    assert len({tuple(said) for said in texts.values()}) == 1
