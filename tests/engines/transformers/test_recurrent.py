"""Models with a recurrent state: what is kept and taken back, what is read again, and what is refused."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import foretoken
from foretoken import DecodeStats, Draft, FixedBudget, ForetokenError, LanguageModel, decode
from foretoken.core.measuring import measure_costs
from foretoken.drafters import AdaptiveNgram
from foretoken.engines.transformers import scans
from foretoken.engines.transformers.exit import ExitTarget
from foretoken.engines.transformers.recurrent import StateLayer
from foretoken.engines.transformers.second_model import draft_target
from foretoken.engines.transformers.target import MOST_REREAD, TransformersTarget
from helpers.drafting import Oracle, RandomTrees, Stateless
from helpers.shapes import RECURRENT, REFUSED, ROW_BY_ROW, VOCAB, tiny_model
from helpers.tokenizing import character_tokenizer

NOISE = 1e-3  # what rounding may move a logit by, in float32, at logits of this size
REREADING = sorted(set(RECURRENT) - {"lfm2"})


def tokens_of(length: int, seed: int = 1) -> list[int]:
    return torch.randint(1, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def answer(target: TransformersTarget, drafter, prompt, num_tokens=30, budget=None) -> tuple[list[int], DecodeStats]:
    stats, tokens = DecodeStats(), []
    for step in decode(target, drafter, prompt, max_new_tokens=num_tokens, budget=budget):
        stats.add(step)
        tokens += step.tokens
    return tokens, stats


def generate(model: tf.PreTrainedModel, prompt: list[int], num_tokens=30, **options: Any) -> list[int]:
    ids = torch.tensor([prompt])
    options |= {"attention_mask": torch.ones_like(ids), "max_new_tokens": num_tokens, "do_sample": False}
    generated: Any = model.generate
    return generated(ids, **options)[0, len(prompt) :].tolist()


@torch.inference_mode()
def logits_after(model: tf.PreTrainedModel, text: list[int], num_rows: int) -> torch.Tensor:
    """Of the last rows of a forward over the whole text, without a cache."""
    return model(torch.tensor([text])).logits[0, -num_rows:]


def states_of(target: TransformersTarget) -> list[torch.Tensor]:
    layers = [layer for layer in target.cache.states.layers if isinstance(layer, StateLayer)]
    found = [[*layer.conv_states.values(), *layer.recurrent_states.values()] for layer in layers]
    return [state for states in found for state in states if state is not None]


# What is kept.


@pytest.mark.parametrize("shape", REREADING)
def test_a_rejection_brings_back_the_very_tensors_from_before(shape):
    """References, not copies; and nothing was written into them meanwhile."""
    target = TransformersTarget(tiny_model(shape))
    target.prefill(tokens_of(9))
    before = states_of(target)
    values = [state.clone() for state in before]
    target.score(5, Draft.chain([1, 2, 3]))
    assert not any(one is other for one in states_of(target) for other in before)
    target.keep([0])
    assert all(one is other for one, other in zip(states_of(target), before, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(before, values, strict=True))
    assert target.num_cached == 9 and target.num_reread == 2 and target.ids[0, 9:].tolist() == [5, 1]


@pytest.mark.parametrize("shape", RECURRENT)
def test_rows_after_rejections_score_as_a_forward_over_the_whole_text_does(shape):
    model = tiny_model(shape)
    target = TransformersTarget(model)
    text = tokens_of(11)
    target.prefill(text)
    for path, draft in (([0], [4, 9, 9]), ([], [3, 1]), ([0, 1], [8, 2]), ([0, 1], [7, 7, 7, 5]), ([], [])):
        text = [*text, 6]
        scores = target.score(6, Draft.chain(draft))
        expected = logits_after(model, [*text, *draft], 1 + len(draft))
        assert (scores.logits - expected).abs().max() < NOISE
        target.keep(path)
        text += draft[: len(path)]
        assert target.ids[0].tolist() == text
    assert target.num_cached == len(text), "a step without guesses reads all that is left"


@pytest.mark.parametrize("shape", RECURRENT)
def test_a_rejection_costs_rows_and_never_a_forward(shape, monkeypatch):
    model = tiny_model(shape)
    rows: list[int] = []
    forward = type(model).forward

    def counting(self, input_ids, **arguments):
        rows.append(input_ids.shape[1])
        return forward(self, input_ids=input_ids, **arguments)

    target = TransformersTarget(model)  # its self-test is over before forwards are counted
    monkeypatch.setattr(type(model), "forward", counting)
    plain, _ = answer(target, None, tokens_of(9))
    rows.clear()
    tokens, stats = answer(target, Wrong(), tokens_of(9), budget=FixedBudget(3))
    assert tokens == plain and stats.accepted == 0 and len(rows) == len(plain)
    if shape == "lfm2":
        assert target.num_reread is None and rows[1:6] == [4] * 5, "inputs of convolutions are dropped like keys"
    else:
        most = 1 + MOST_REREAD
        assert rows[1:6] == [4, 5, 6, 7, 8] and max(rows) <= most + 3
        assert most in rows, "where too many are read again, nothing is drafted, and they are read for good"


class Wrong(Stateless):
    """Guesses what never comes."""

    def propose(self, context, max_tokens):
        return Draft.chain([VOCAB] * max_tokens)  # no token of the model


@pytest.mark.parametrize("shape", ["qwen3_5", "granite_4", "mamba_2", "lfm2"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), budget=st.integers(0, 20), length=st.integers(1, 40), chunk=st.integers(1, 17))
def test_the_text_is_plain_decodings_whatever_is_drafted_and_however_the_prompt_is_read(
    shape, seed, budget, length, chunk
):
    prompt = tokens_of(length, seed % 5)
    plain, _ = answer(TransformersTarget(tiny_model(shape)), None, prompt, 24)
    target = TransformersTarget(tiny_model(shape), prefill_chunk=chunk)
    for drafter in (RandomTrees(seed, VOCAB), Oracle(seed, prompt, plain, VOCAB)):
        assert answer(target, drafter, prompt, 24, FixedBudget(budget))[0] == plain


@pytest.mark.parametrize("shape", ["qwen3_5", "granite_4", "mamba_2", "lfm2"])
@pytest.mark.parametrize("num_guesses", [0, 3])
def test_after_a_forward_that_failed_the_answer_goes_on(shape, num_guesses):
    """Over one row a model writes its states in place, so that all is read again; over several the old ones return."""
    model = copy.deepcopy(tiny_model(shape))
    target = TransformersTarget(model)
    text = tokens_of(9)
    target.prefill(text)
    target.score(5, Draft.chain([1, 2]))
    target.keep([])
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        target.score(4, Draft.chain([1, 2, 3][:num_guesses]))
    handle.remove()
    scores = target.score(4, Draft())
    assert (scores.logits - logits_after(model, [*text, 5, 4], 1)).abs().max() < NOISE


def fail(module, arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize("shape", RECURRENT)
def test_an_answer_that_nobody_reads_to_its_end_leaves_no_trace_in_the_next(shape):
    target = TransformersTarget(tiny_model(shape))
    first, second = tokens_of(9), tokens_of(12, seed=2)
    plain, _ = answer(TransformersTarget(tiny_model(shape)), None, second)
    steps = decode(target, RandomTrees(1, VOCAB), first, max_new_tokens=30)
    for _ in range(4):
        next(steps)
    steps.close()
    assert answer(target, RandomTrees(2, VOCAB), second)[0] == plain


def test_states_of_half_precision_keep_their_dtype():
    model = tiny_model("granite_4", dtype=torch.bfloat16)
    target = TransformersTarget(model)
    target.prefill(tokens_of(9))
    before = [state.dtype for state in states_of(target)]
    target.score(5, Draft.chain([1, 2, 3]))
    assert [state.dtype for state in states_of(target)] == before


def test_costs_are_measured_over_just_the_rows_that_are_asked_for(monkeypatch):
    model = tiny_model("qwen3_5")
    target, rows, texts = TransformersTarget(model), [], []
    forward, prefill = target._forward, target.prefill

    def counting(ids, model=None, **extra):
        rows.append(ids.shape[1])
        return forward(ids, model, **extra)

    def reading(prompt):
        texts.append(len(prompt))
        return prefill(prompt)

    monkeypatch.setattr(target, "_forward", counting)
    monkeypatch.setattr(target, "prefill", reading)
    measured = measure_costs(target)
    assert set(measured.as_dict()) == {1, 2, 4, 8, 16, 32, 64}
    assert set(rows) == {1, 2, 4, 8, 16, 32, 64, *texts}


# Scans.


@pytest.mark.parametrize("shape", RECURRENT)
def test_the_scans_of_drafts_leave_the_model_as_it_is(shape):
    model = tiny_model(shape)
    before = [(name, id(module), dict(vars(module))) for name, module in model.named_modules()]
    made = scans.scans_of_drafts(model)
    assert made is not None
    assert [(name, id(module), dict(vars(module))) for name, module in model.named_modules()] == before
    assert {id(one) for one in made.parameters()} == {id(one) for one in model.parameters()}
    chunks = [module.chunk_size for module in made.modules() if "chunk_size" in vars(module)]
    assert set(chunks) <= {scans.CHUNK}


@pytest.mark.parametrize("shape", ["nemotron_h", "zamba_2"])
def test_a_scan_that_bounds_the_time_step_would_change_the_text(shape, monkeypatch):
    """Transformers bounds it from below in a scan, and not in a step; where it is short, the two part."""
    model = copy.deepcopy(tiny_model(shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("dt_bias"):
                parameter.fill_(-12.0)  # time steps far below the bound
    assert scans.goes_on_as_steps_do(model, scans.scans_of_drafts(model))
    assert not scans.goes_on_as_steps_do(model, model)
    for module in model.modules():  # as accelerate does, which runs the object that it was put on
        module.forward = module.forward
    scans._CONTINUES.clear()
    assert scans.scans_of_drafts(model) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", ROW_BY_ROW)
def test_a_model_whose_scan_forgets_the_state_is_decoded_plainly_and_says_so(shape, dtype, caplog):
    model = copy.deepcopy(tiny_model(shape, dtype=dtype))
    with caplog.at_level(logging.WARNING, "foretoken"):
        target = TransformersTarget(model, prefill_chunk=4)
        TransformersTarget(model)
    assert [record.message for record in caplog.records if "nothing is drafted" in record.message] == [
        f"The layers of {type(model).__name__} read several rows otherwise than one after the other, so that a draft "
        "would change the text: nothing is drafted with it."
    ]
    assert target.max_draft_depth == 0 and target.num_reread in (None, 0)
    if dtype == torch.float32:
        prompt = tokens_of(21)
        tokens, stats = answer(target, AdaptiveNgram(), prompt)
        assert tokens == generate(model, prompt) and stats.drafted == 0


@pytest.mark.parametrize("shape", REFUSED)
def test_a_state_that_is_kept_elsewhere_is_refused(shape):
    with pytest.raises(ForetokenError, match=r"keeps a recurrent state in a way of its own.*: use its own generate"):
        TransformersTarget(tiny_model(shape))


# Three doors.


@pytest.mark.parametrize("shape", RECURRENT | ROW_BY_ROW)
def test_the_hook_gives_the_text_of_transformers_own_loop(shape):
    model, prompt = tiny_model(shape), tokens_of(23)
    theirs = generate(model, prompt)
    assert len(set(theirs)) > 8, "a model that repeats one token proves nothing"
    hook: dict[str, Any] = {"custom_generate": foretoken.generate}
    assert generate(model, prompt, **hook) == theirs
    for drafter in (RandomTrees(0, VOCAB), Oracle(0, prompt, theirs, VOCAB), "recycle", "none"):
        assert generate(model, prompt, **hook, drafter=drafter, budget=FixedBudget(5)) == theirs
    if shape in RECURRENT:
        assert generate(model, prompt, **hook, prefill_chunk_size=5) == theirs


@pytest.mark.parametrize("shape", RECURRENT)
@torch.inference_mode()
def test_a_cache_that_the_hook_returns_goes_on(shape):
    """It holds every token but the last, also those that would have been read again."""
    model, prompt = tiny_model(shape), tokens_of(23)
    ids = torch.tensor([prompt])
    options: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 9, "do_sample": False}
    output = model.generate(
        ids,
        **options,
        return_dict_in_generate=True,
        custom_generate=foretoken.generate,
        drafter=RandomTrees(3, VOCAB),
        budget=FixedBudget(4),
    )
    text = output.sequences[0].tolist()
    argument = "cache_params" if shape == "mamba_2" else "past_key_values"
    position = {} if shape == "mamba_2" else {"position_ids": torch.tensor([[len(text) - 1]])}
    logits = model(torch.tensor([text[-1:]]), **{argument: output.past_key_values}, **position, use_cache=True).logits
    assert (logits[0, -1] - logits_after(model, text, 1)[0]).abs().max() < NOISE


@pytest.mark.parametrize("shape", ["qwen3_next", "granite_4", "lfm2", "jamba"])
def test_a_cache_that_was_made_elsewhere_is_refused(shape):
    model = tiny_model(shape)
    cache = tf.DynamicCache(config=model.config)
    with pytest.raises(ForetokenError, match=r"past_key_values was given, and .* pass none"):
        generate(model, tokens_of(5), custom_generate=foretoken.generate, past_key_values=cache)
    with pytest.raises(ForetokenError, match="past_key_values was given"):
        TransformersTarget(model, cache=cache)


@pytest.mark.parametrize("shape", RECURRENT | ROW_BY_ROW)
def test_a_language_model_streams_and_stops(shape):
    lm = LanguageModel(tiny_model(shape), character_tokenizer(), background=None)
    plain = lm.generate("abc abc", max_new_tokens=40, drafter="none")
    assert lm.generate("abc abc", max_new_tokens=40).tokens == plain.tokens
    options: dict[str, Any] = {"max_new_tokens": 40, "drafter": "anpd", "budget": FixedBudget(6)}
    assert "".join(chunk.text for chunk in lm.stream("abc abc", **options)) == plain.text
    pairs = [plain.text[i : i + 2] for i in range(8, 30)]
    stop = next(pair for pair in pairs if "\N{REPLACEMENT CHARACTER}" not in pair)  # half of a character is none yet
    stopped = lm.generate("abc abc", **options, stop=stop)
    assert stopped.text == plain.text[: plain.text.index(stop) + len(stop)] and stopped.finish_reason == "stop"
    sampled = {"temperature": 0.9, "seed": 7}
    assert (
        lm.generate("abc", **options, **sampled).tokens
        == lm.generate("abc", **options | {"drafter": "none"}, **sampled).tokens
    )


@pytest.mark.parametrize("shape", ["qwen3_5", "lfm2", "mamba_2"])
def test_drafters_that_need_its_earlier_states_are_refused(shape):
    model = tiny_model(shape)
    with pytest.raises(ForetokenError, match=r"recurrent state, which its first layers cannot share: use another"):
        ExitTarget(TransformersTarget(model))
    with pytest.raises(ForetokenError, match=r"draft model .* recurrent state, .*: choose one with attention"):
        draft_target(model, TransformersTarget(tiny_model("llama")).choice)


@pytest.mark.parametrize("shape", ["qwen3_5", "lfm2", "mamba_2", "jamba"])
def test_it_is_not_exact_to_the_bit(shape):
    """A scan rounds unlike steps. By default nobody minds; who insists is told."""
    lm = LanguageModel(tiny_model(shape), character_tokenizer(), background=None)
    assert not lm.generate("abc", max_new_tokens=4).exact
    with pytest.raises(ForetokenError, match=r"exact=True is for models of attention alone, and .*: leave it out"):
        LanguageModel(tiny_model(shape), character_tokenizer(), background=None, exact=True).generate("abc")
