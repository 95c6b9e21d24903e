"""After any exit, at any moment, a caller's cache holds tokens that the caller knows, and no others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from transformers import DynamicCache, LogitsProcessorList, StoppingCriteriaList

import foretoken
from foretoken import FixedBudget
from foretoken.engines.transformers.target import TransformersTarget
from helpers.drafting import Oracle
from helpers.shapes import VOCAB, tiny_model

PROMPT = torch.tensor([[5, 9, 4, 1, 5, 9]])
NEW = 40


class LeaveError(Exception):
    """The client has gone."""


class Counter:
    """Raises at its n-th call, whatever it is called with."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def count(self) -> None:
        self.calls -= 1
        if self.calls == 0:
            raise LeaveError


def by_criterion(counter: Counter, model: tf.PreTrainedModel) -> dict[str, Any]:
    def criterion(input_ids: torch.Tensor, scores: Any, **rest: Any) -> torch.Tensor:
        counter.count()
        return torch.zeros(1, dtype=torch.bool)

    return {"stopping_criteria": StoppingCriteriaList([criterion])}


def by_processor(counter: Counter, model: tf.PreTrainedModel) -> dict[str, Any]:
    def processor(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counter.count()
        return scores

    return {"logits_processor": LogitsProcessorList([processor])}


def by_streamer(counter: Counter, model: tf.PreTrainedModel) -> dict[str, Any]:
    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            counter.count()

        def end(self) -> None:
            pass

    return {"streamer": Streamer()}


def by_a_layer(counter: Counter, model: tf.PreTrainedModel) -> dict[str, Any]:
    """In the middle of a forward: the first layer's cache has grown, the last one's has not."""
    model.get_decoder().layers[1].register_forward_pre_hook(lambda *_: counter.count())
    return {}


def by_the_drafter(counter: Counter, model: tf.PreTrainedModel) -> dict[str, Any]:
    class Leaving(Oracle):
        def observe(self, step: Any) -> None:
            counter.count()

    return {"drafter": Leaving(0, PROMPT[0].tolist(), answer(model), VOCAB)}


def by_dropping(counter: Counter, model: tf.PreTrainedModel) -> dict[str, Any]:
    """While rejected guesses are dropped, layer by layer: as Ctrl-C would."""

    class Leaving(DynamicCache):
        def crop(self, tokens_to_remove: int) -> None:
            self.layers[0].crop(tokens_to_remove)
            counter.count()
            self.layers[1].crop(tokens_to_remove)

    return {"past_key_values": Leaving(config=model.config)}


WAYS: list[Callable[[Counter, tf.PreTrainedModel], dict[str, Any]]] = [
    by_criterion,
    by_processor,
    by_streamer,
    by_a_layer,
    by_the_drafter,
    by_dropping,
]


def answer(model: Any, prompt: torch.Tensor = PROMPT, **options: Any) -> list[int]:
    """Transformers' own."""
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **options)[
        0, prompt.shape[1] :
    ].tolist()


@pytest.mark.parametrize(
    ("shape", "way"),  # gemma3 has layers of both kinds, with and without a window
    [*(("gemma3", way) for way in WAYS), ("llama", by_criterion), ("mistral", by_the_drafter)],
)
def test_the_next_turn_is_right(shape, way):
    plain = answer(tiny_model(shape))
    for calls in (1, 2, 3, 5):
        model = tiny_model.__wrapped__(shape)
        options = {
            "past_key_values": DynamicCache(config=model.config),
            "drafter": Oracle(0, PROMPT[0].tolist(), plain, VOCAB),
            "budget": FixedBudget(6),
            "max_new_tokens": NEW,
            "do_sample": False,
            "attention_mask": torch.ones_like(PROMPT),
            "custom_generate": foretoken.generate,
            **way(Counter(calls), model),
        }
        with pytest.raises(LeaveError):
            model.generate(PROMPT, **options)
        cache = options["past_key_values"]
        for layer in cache.layers:  # whole and alike
            assert layer.get_seq_length() == cache.get_seq_length() <= PROMPT.shape[1]
        model = tiny_model(shape)
        said = torch.cat([PROMPT, torch.tensor([[3, 1, 4, 1]])], dim=1)  # another question than was being answered
        assert answer(model, said, past_key_values=cache) == answer(model, said)


def test_an_earlier_turn_stays_in_the_cache():
    model = tiny_model("gemma3")
    cache = DynamicCache(config=model.config)
    first = model.generate(
        PROMPT,
        attention_mask=torch.ones_like(PROMPT),
        past_key_values=cache,
        max_new_tokens=30,
        do_sample=False,
        custom_generate=foretoken.generate,
    )
    held = cache.get_seq_length()
    said = torch.cat([first, torch.tensor([[3, 1]])], dim=1)
    with pytest.raises(LeaveError):
        model.generate(
            said,
            attention_mask=torch.ones_like(said),
            past_key_values=cache,
            max_new_tokens=30,
            do_sample=False,
            custom_generate=foretoken.generate,
            **by_criterion(Counter(9), model),
        )
    assert cache.get_seq_length() == held == first.shape[1] - 1
    assert answer(model, said, past_key_values=cache) == answer(model, said)


def test_a_loop_that_is_left_between_two_steps_has_kept_what_it_gave():
    model = tiny_model("llama")
    target = TransformersTarget(model)
    drafter = Oracle(0, PROMPT[0].tolist(), answer(model), VOCAB)
    context = PROMPT[0].tolist()
    for step in foretoken.decode(target, drafter, context, max_new_tokens=NEW, budget=FixedBudget(5)):
        context = [*context, *step.tokens]
        assert target.num_cached == len(context) - 1


@pytest.mark.parametrize("name", ["cat", "tensor"])
def test_an_interrupt_in_any_call_of_torch_leaves_no_token_that_the_caller_has_not_seen(name, monkeypatch):
    """In a layer's first update for one, when there are keys and no values yet."""
    model, theirs = tiny_model("llama"), getattr(torch, name)
    prompt, plain = PROMPT[0].tolist(), answer(model)
    for calls in range(1, 60):
        cache, counter, seen = DynamicCache(), Counter(calls), list(prompt)
        target = TransformersTarget(model, cache=cache)
        drafter = Oracle(0, prompt, plain, VOCAB)
        with monkeypatch.context() as patched:
            patched.setattr(
                torch, name, lambda *given, counter=counter, **named: (counter.count(), theirs(*given, **named))[1]
            )
            with contextlib.suppress(LeaveError):
                for step in foretoken.decode(target, drafter, prompt, max_new_tokens=NEW, budget=FixedBudget(6)):
                    seen += step.tokens
        for layer in cache.layers:
            assert layer.get_seq_length() == cache.get_seq_length() <= len(seen), calls


def test_a_budget_that_fails_leaves_no_token_that_the_caller_has_not_seen():
    class Failing(FixedBudget):
        def observe(self, *step: Any) -> None:
            raise LeaveError

    model, cache, seen = tiny_model("llama"), DynamicCache(), PROMPT[0].tolist()
    target = TransformersTarget(model, cache=cache)
    drafter = Oracle(0, seen, answer(model), VOCAB)
    with pytest.raises(LeaveError):
        for step in foretoken.decode(target, drafter, PROMPT[0].tolist(), max_new_tokens=NEW, budget=Failing(6)):
            seen += step.tokens
    assert PROMPT.shape[1] < cache.get_seq_length() == len(seen) - 1
