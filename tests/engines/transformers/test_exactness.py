"""Exact decoding: the logits of every committed row are plain decoding's in every bit, whatever was drafted."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

import foretoken
from foretoken import AdaptiveBudget, Drafter, FixedBudget, ForetokenError, LanguageModel, decode
from foretoken.core.draft import Draft
from foretoken.drafters.draft_model import DraftModelDrafter
from foretoken.drafters.early_exit import EarlyExitDrafter
from foretoken.drafters.lookahead import LookaheadDrafter
from foretoken.engines.transformers import exactness as deciding
from foretoken.engines.transformers import row_attention
from foretoken.engines.transformers.attention import ROWS_OVER
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.engine import TransformersEngine
from foretoken.engines.transformers.exactness import Exactness
from foretoken.engines.transformers.exit import ExitTarget
from foretoken.engines.transformers.row_attention import row_paths
from foretoken.engines.transformers.scores import TransformersScores
from foretoken.engines.transformers.second_model import draft_target
from foretoken.engines.transformers.self_test import FixedWidths, self_test
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.engines.transformers.width_classes import width_classes
from foretoken.measure.check import RecordedTree
from foretoken.memory.self_tests import SelfTest, read_self_test, self_test_of
from helpers.drafting import Oracle, RandomTrees
from helpers.shapes import CONFIGS, LLAMA, SMALL, VOCAB, tiny_model
from helpers.tokenizing import character_tokenizer

DTYPES = torch.float32, torch.bfloat16, torch.float16
# Shapes that nothing else of the tests needs: scores bounded by a tanh, and scores of nobody, as GPT-OSS has them.
MORE_CONFIGS = {
    "gemma2": lambda: tf.Gemma2Config(**LLAMA, head_dim=8, sliding_window=16, attn_logit_softcapping=5.0),
    "gpt_oss": lambda: tf.GptOssConfig(**LLAMA, head_dim=8, num_local_experts=2, num_experts_per_tok=1),
    # Heads as long as those of real models, whose keys are read where the cache holds them; one, and five to a group.
    "multi_head": lambda: tf.LlamaConfig(**(LLAMA | {"num_key_value_heads": 4}), head_dim=32),
    "grouped": lambda: tf.MistralConfig(**(LLAMA | {"num_attention_heads": 10}), head_dim=32, sliding_window=16),
    "odd_sizes": lambda: tf.LlamaConfig(**(LLAMA | {"hidden_size": 36, "intermediate_size": 50, "head_dim": 10})),
}


@cache
def model_of(shape: str, dtype: torch.dtype, attention: str = "sdpa") -> tf.PreTrainedModel:
    if shape in CONFIGS:
        return tiny_model(shape, attention, dtype)
    torch.manual_seed(0)
    config = MORE_CONFIGS[shape]()
    config._attn_implementation = attention
    return tf.AutoModelForCausalLM.from_config(config).eval().to(dtype)


@cache
def widths_of(shape: str, dtype: torch.dtype, attention: str = "sdpa", threads: int = 1) -> FixedWidths:
    """The numbers of rows that keep bits, as the self-test finds them here."""
    found = self_test(model_of(shape, dtype, attention), max_seconds=60.0)
    assert found.passed, (shape, dtype, found)
    return FixedWidths(found.widths)


def bits(logits: torch.Tensor) -> bytes:
    return logits.detach().contiguous().view(torch.uint8).numpy().tobytes()


def answer(
    target: TransformersTarget, drafter: Drafter | None, prompt: Sequence[int], budget: int = 9, length: int = 40
) -> list[tuple[int, bytes]]:
    """Every token of an answer, with the bits of the logits that it was chosen from."""
    found = []
    for step in decode(target, drafter, prompt, max_new_tokens=length, budget=FixedBudget(budget)):
        assert isinstance(step.scores, TransformersScores)
        rows = [node + 1 for node in (-1, *step.path)]
        found += [(token, bits(step.scores.logits[row])) for token, row in zip(step.tokens, rows, strict=True)]
    return found


def choice_of(temperature: float, penalty: float, seed: int) -> Choice:
    processors = tf.LogitsProcessorList()
    if penalty != 1.0:
        processors.append(tf.RepetitionPenaltyLogitsProcessor(penalty))
    if temperature:
        processors.append(tf.TemperatureLogitsWarper(temperature))
    return Choice(processors or None, seed if temperature else None)


def drafters(seed: int, prompt: Sequence[int], tokens: Sequence[int]) -> list[Drafter]:
    return [Oracle(seed, prompt, tokens, VOCAB), RandomTrees(seed, VOCAB), LookaheadDrafter(3, 3, 3)]


@settings(max_examples=40, deadline=None)
@example(shape="mistral", dtype=torch.bfloat16, attention="sdpa", chunk=7, temperature=0.8, penalty=1.3, seed=1, size=9)
@given(
    shape=st.sampled_from([*CONFIGS, *MORE_CONFIGS]),
    dtype=st.sampled_from(DTYPES),
    attention=st.sampled_from(["sdpa", "eager"]),
    chunk=st.integers(1, 9),
    temperature=st.sampled_from([0.0, 0.8]),
    penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 2**32),
    size=st.integers(1, 30),
)
def test_logits_of_committed_rows_are_plain_decodings(shape, dtype, attention, chunk, temperature, penalty, seed, size):
    attention = "eager" if shape in ("gemma2", "gpt_oss") else attention
    model, prompt = model_of(shape, dtype, attention), [seed % VOCAB, 3, 9, *[seed % 7, 4] * (seed % 13)]

    def target() -> TransformersTarget:
        exact = widths_of(shape, dtype, attention)
        return TransformersTarget(model, choice_of(temperature, penalty, seed), exact=exact, prefill_chunk=chunk)

    plain = answer(target(), None, prompt)
    for drafter in drafters(seed, prompt, [token for token, _ in plain]):
        assert answer(target(), drafter, prompt, size) == plain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_threads_keep_bits_as_well(dtype):
    torch.set_num_threads(2)
    try:
        model, exact = model_of("llama", dtype), FixedWidths(self_test(model_of("llama", dtype)).widths)
        plain = answer(TransformersTarget(model, exact=exact), None, [5, 9, 4], length=20)
        for drafter in drafters(4, [5, 9, 4], [token for token, _ in plain])[:2]:
            assert answer(TransformersTarget(model, exact=exact), drafter, [5, 9, 4], length=20) == plain
    finally:
        torch.set_num_threads(1)


def test_without_it_bits_differ():
    """The same test must fail where rows are not kept apart, in every dtype: some shape shows it on every processor."""
    for dtype in DTYPES:
        parted = 0
        for shape in ("llama", "grouped", "multi_head"):
            model = model_of(shape, dtype)
            plain = answer(TransformersTarget(model), None, [5, 9, 4])
            known = drafters(4, [5, 9, 4], [token for token, _ in plain])
            parted += sum(answer(TransformersTarget(model), drafter, [5, 9, 4]) != plain for drafter in known)
        assert parted, dtype


@pytest.mark.parametrize("has_tiles", [False, True])
@pytest.mark.parametrize("shape", ["llama", "grouped", "multi_head"])
def test_bits_are_kept_however_heads_are_taken_together(shape, has_tiles, monkeypatch):
    """In bfloat16 it depends on the processor: both ways are exact on any."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    model, exact = model_of(shape, torch.bfloat16), FixedWidths(self_test(model_of(shape, torch.bfloat16)).widths)
    plain = answer(TransformersTarget(model, exact=exact), None, [5, 9, 4] * 9)
    for drafter in drafters(4, [5, 9, 4] * 9, [token for token, _ in plain]):
        assert answer(TransformersTarget(model, exact=exact), drafter, [5, 9, 4] * 9) == plain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@settings(max_examples=4, deadline=None)
@given(
    shape=st.sampled_from(["llama", "grouped"]),
    temperature=st.sampled_from([0.0, 0.8]),
    penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 2**32),
)
def test_models_that_draft_leave_every_bit_as_it_was(dtype, shape, temperature, penalty, seed):
    """An early exit writes to the target's own cache, and a draft model decodes inexactly beside it."""
    model, choice = model_of(shape, dtype), choice_of(temperature, penalty, seed)
    prompt = [seed % VOCAB, 3, 9]

    def target() -> TransformersTarget:
        return TransformersTarget(model, choice, exact=widths_of(shape, dtype))

    plain = answer(target(), None, prompt)
    own = target()
    assert answer(own, EarlyExitDrafter(ExitTarget(own, 1), floor=0.0), prompt) == plain
    drafter = DraftModelDrafter(draft_target(model_of("qwen2", dtype), choice), floor=0.0)
    assert answer(target(), drafter, prompt) == plain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tokens_whose_output_rows_are_equal_are_told_apart_alike(dtype):
    """The best two logits of every position are one number, and the first of them counts: no rounding may part them."""
    model = tiny_model.__wrapped__("llama", dtype=dtype)
    with torch.no_grad():
        rows = model.get_output_embeddings().weight
        rows[VOCAB - VOCAB // 2 :] = rows[: VOCAB // 2].flip(0).clone()
    for seed in range(3):
        prompt = [(7 * seed + 3 * i) % VOCAB for i in range(6)]
        plain = answer(TransformersTarget(model, exact=widths_of("llama", dtype)), None, prompt)
        for trees in (False, True):
            drafter = RecordedTree([*prompt, *(token for token, _ in plain)], VOCAB, trees)
            assert answer(TransformersTarget(model, exact=widths_of("llama", dtype)), drafter, prompt, 15) == plain


def test_a_seed_that_was_searched_for_chooses_alike():
    """One of 7.2 million pairs of seed and position at which float32 without exactness chooses another token."""
    lm = foretoken.load("tiny", dtype="float32", exact=True, background=None)
    assert isinstance(lm.engine, TransformersEngine)
    ids = lm.encode("def read_lines(path):\n    with open(path) as file:\n")
    seventh = TransformersTarget(lm.model, Choice(seed=7))
    text = [*ids, *(t for step in decode(seventh, None, ids, max_new_tokens=60) for t in step.tokens)]
    length, chosen = len(ids) + 1, []
    for guesses in (0, 15):
        target = TransformersTarget(lm.model, Choice(seed=346062), exact=lm.engine.exactness)
        target.prefill(text[:length])
        chosen.append(target.score(text[length], Draft.chain(text[length + 1 : length + 1 + guesses])).choose(0))
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("shape", ["mistral", "gemma3"])
def test_a_cache_that_was_given_and_keeps_only_a_window(shape):
    model, prompt, exact = model_of(shape, torch.bfloat16), [5, 9, 4] * 9, widths_of(shape, torch.bfloat16)

    def target() -> TransformersTarget:
        return TransformersTarget(model, exact=exact, cache=tf.DynamicCache(config=model.config))

    plain = answer(target(), None, prompt)
    for drafter in drafters(4, prompt, [token for token, _ in plain])[:2]:
        for budget in (9, 100):
            assert answer(target(), drafter, prompt, budget) == plain


def test_drafts_of_more_rows_than_any_width_take_several_forwards():
    model, prompt = model_of("llama", torch.float32), [5, 9, 4]
    widths = FixedWidths(tuple(width for width in widths_of("llama", torch.float32).allowed if width <= 8))
    plain = answer(TransformersTarget(model, exact=widths), None, prompt)
    for drafter in drafters(4, prompt, [token for token, _ in plain]):
        assert answer(TransformersTarget(model, exact=widths), drafter, prompt, 30) == plain


def test_the_cache_holds_no_filling_and_the_model_is_as_it_was():
    model = model_of("llama", torch.float32)
    target = TransformersTarget(model, exact=FixedWidths((16,)))
    target.prefill([5, 9, 4])
    target.score(7, Draft((1, 2, 3), (-1, 0, -1)))
    assert target.num_cached == 7 and model.config._attn_implementation == "sdpa"
    target.keep((0,))
    assert target.num_cached == 5 and target.ids.tolist() == [[5, 9, 4, 7, 1]]


@pytest.mark.parametrize("length", [40, 41, 47])
def test_filling_does_not_reach_beyond_the_context(length):
    """GPT-2 has no embedding for positions beyond its context."""
    config = tf.GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=48)
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    prompt = list(range(1, length))
    plain = answer(TransformersTarget(model, max_length=48, exact=FixedWidths((16,))), None, prompt)
    drafted = TransformersTarget(model, max_length=48, exact=FixedWidths((16,)))
    assert (
        answer(drafted, Oracle(1, prompt, [t for t, _ in plain], VOCAB), prompt) == plain and len(plain) == 49 - length
    )


def test_other_threads_run_the_model_as_it_is():
    """A thread that does not decode exactly gets the model's own attention, whatever the others do."""
    model, failed = model_of("mistral", torch.float32), []
    prompt = torch.tensor([[5, 9, 4, 1] * 6])
    with torch.inference_mode():
        own = model(prompt).logits

    def as_it_is() -> None:
        with torch.inference_mode():
            failed.extend(1 for _ in range(30) if not torch.equal(model(prompt).logits, own))

    other = threading.Thread(target=as_it_is)
    other.start()
    exact = widths_of("mistral", torch.float32)
    answers = [answer(TransformersTarget(model, exact=exact), RandomTrees(1, VOCAB), [5, 9, 4]) for _ in range(3)]
    other.join()
    assert not failed and answers[0] == answers[1] == answers[2]
    assert not str(model.config._attn_implementation).startswith(ROWS_OVER)


def test_exact_attention_is_attention():
    """Independent of our code: the logits of transformers' own forward, but for rounding."""
    for shape in (*CONFIGS, *MORE_CONFIGS):
        attention = "eager" if shape in ("gemma2", "gpt_oss") else "sdpa"
        model = model_of(shape, torch.float32, attention)
        text = [(7 * i) % VOCAB for i in range(40)]
        with torch.inference_mode():
            own = model(torch.tensor([text])).logits[0]
        target = TransformersTarget(model, exact=FixedWidths((1, 16)))
        target.prefill(text[:20])
        logits = target.score(text[20], Draft.chain(text[21:36])).logits
        torch.testing.assert_close(logits, own[20:36], rtol=1e-3, atol=1e-3)


# The promise at every door.


@pytest.fixture
def kept(monkeypatch):
    """What the self-test finds, as a test wants it."""

    def keep(**changes):
        found = {"tested": (1, 4, 16), "widths": (4, 16), "equal": 20, "rows": 20, "cost": 0.5} | changes
        monkeypatch.setattr(deciding, "self_test_of", lambda key, run: SelfTest(**found))

    return keep


def test_auto_is_exact_where_it_is_cheap(kept):
    model = model_of("llama", torch.float32)
    kept(cost=0.04)
    assert Exactness(model).widths() == Exactness(model, True).widths() == (4, 16)
    kept(cost=0.06)
    assert Exactness(model).widths() == Exactness(model, False).widths() == () and Exactness(model, True).widths()
    kept(cost=-0.1, equal=19)
    assert Exactness(model).widths() == ()
    with pytest.raises(ForetokenError, match="19 of 20 were equal"):
        Exactness(model, True)


def test_tf32_is_off_or_exactness_is_not(kept, monkeypatch):
    """With a stand-in for a GPU: no processor has TF32."""
    kept(cost=0.0)
    monkeypatch.setattr(deciding, "input_device", lambda model: torch.device("cuda"))
    model = model_of("llama", torch.float32)
    assert Exactness(model, True).widths()
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision="tf32"))
    with pytest.raises(ForetokenError, match=r"while TF32 is on, .*: set torch.backends.cuda.matmul.fp32_precision"):
        Exactness(model, True)
    assert Exactness(model).widths() == ()
    assert Exactness(model_of("llama", torch.bfloat16), True).widths(), "which is not rounded so"


def test_a_setting_that_is_none_is_refused():
    model = model_of("llama", torch.float32)
    for wrong in ("yes", 1, None):
        with pytest.raises(ForetokenError, match='give True, False or "auto"'):
            Exactness(model, wrong)
    with pytest.raises(ForetokenError, match="An engine has a setting of exact of its own"):
        LanguageModel(LanguageModel(model, character_tokenizer(), background=None).engine, exact=True)


def test_attention_that_is_not_ours_to_replace_is_refused(monkeypatch):
    config = CONFIGS["llama"]()
    config._attn_implementation = "flex_attention"
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ForetokenError, match='load the model with attn_implementation="sdpa"'):
        Exactness(model, True)
    assert Exactness(model).widths() == ()
    bloom = tf.AutoModelForCausalLM.from_config(tf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(ForetokenError, match="BloomForCausalLM computes its own"):
        Exactness(bloom.eval(), True)


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1.001), ("float16", 1.1), ("bfloat16", 1.5)])
def test_attention_that_is_more_than_ours_is_noticed(monkeypatch, dtype, factor):
    """A layer that does behind our back what we do not compute, by as little as the dtype lets one see."""
    model = tiny_model.__wrapped__("llama").to(getattr(torch, dtype))
    attended = row_attention._attended
    monkeypatch.setattr(row_attention, "_attended", lambda *arguments: factor * attended(*arguments))
    with pytest.raises(ForetokenError, match="is more than what can be computed row by row"):
        self_test(model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_door_gives_the_same_answer(dtype):
    lm = foretoken.load("tiny", dtype=dtype, exact=True, background=None)
    prompt = "def area(width, height):\n"
    options = {"max_new_tokens": 24, "temperature": 0.8, "seed": 7, "namespace": None}
    plain = lm.generate(prompt, drafter="none", **options)
    assert plain.exact
    for drafter, budget in (
        ("mixed", None),
        ("lookahead", FixedBudget(30)),
        ("speculator", FixedBudget(2)),
        ("early-exit", AdaptiveBudget(costs=dict.fromkeys(range(1, 40), 0.01))),
    ):
        drafted = lm.generate(prompt, drafter=drafter, budget=budget, **options)
        assert drafted.tokens == plain.tokens and drafted.exact
    inputs = lm.tokenizer(prompt, return_tensors="pt")
    texts = []
    for drafter in ("none", "mixed"):
        torch.manual_seed(3)
        given = {"do_sample": True, "max_new_tokens": 40, "custom_generate": foretoken.generate, "exact": True}
        texts.append(lm.model.generate(**inputs, **given, drafter=drafter)[0].tolist())
    assert texts[0] == texts[1]


# The self-test.


def test_paths_of_rows():
    assert row_paths(Draft()) == [[0]]
    assert row_paths(Draft((1, 2, 3, 4), (-1, -1, 1, 0))) == [[0], [0, 1], [0, 2], [0, 2, 3], [0, 1, 4]]


def test_sums_that_cancel_show_every_other_order(monkeypatch):
    """A library that adds the terms of three rows or more backwards is seen, also where results round alike."""
    model = model_of("llama", torch.bfloat16)

    def backwards(rows, weight):
        rows, weight = rows.float(), weight.float()
        order = range(rows.shape[1]) if len(rows) < 3 else range(rows.shape[1] - 1, -1, -1)
        total = torch.zeros(len(rows), len(weight))
        for i in order:
            total = total + rows[:, i : i + 1] * weight[:, i]
        return total.bfloat16()

    monkeypatch.setattr("foretoken.engines.transformers.width_classes.linear", backwards)
    assert width_classes(model, (1, 2, 3, 4)) == {1: {1, 2}, 2: {1, 2}, 3: {3, 4}, 4: {3, 4}}


def test_a_row_that_rounds_by_its_place_is_in_no_class(monkeypatch):
    def by_place(rows, weight):
        out = linear(rows, weight)
        return torch.cat([out[:4], out[4:] * 1.5])

    monkeypatch.setattr("foretoken.engines.transformers.width_classes.linear", by_place)
    classes = width_classes(model_of("llama", torch.float16), (1, 2, 8, 16))
    assert classes[8] == classes[16] == frozenset() and 8 not in classes[1]


def test_activations_that_round_by_place_are_seen():
    """Of 50 numbers to a row the processor computes some one by one, and which ones depends on the number of rows."""

    class ByPlace(torch.nn.SiLU):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            out = super().forward(rows.double()).to(rows.dtype).flatten()
            return torch.cat([out[: len(out) // 64 * 64], 1.5 * out[len(out) // 64 * 64 :]]).view(rows.shape)

    ByPlace.__module__ = "torch.nn.modules.activation"
    model = tiny_model.__wrapped__("llama", dtype=torch.bfloat16)  # of 16, 32 and 64 numbers to a row
    for layer in model.model.layers:
        layer.mlp.act_fn = ByPlace()
    classes = width_classes(model, (4, 6, 8))
    assert 4 in classes[4] and 8 in classes[8] and not classes[6]


def test_rows_that_see_their_neighbours_fail(monkeypatch):
    """The control: where a forward of several rows is another than of one, no width is left to draft with."""
    forward = TransformersTarget._forward

    def moved(self, input_ids, *args, **extra):
        logits, states = forward(self, input_ids, *args, **extra)
        return logits + 1e-6 * (1 < input_ids.shape[1] < 20) * input_ids.sum(), states

    monkeypatch.setattr(TransformersTarget, "_forward", moved)
    found = self_test(model_of("llama", torch.float32))
    assert found.equal < found.rows and not found.passed


def test_what_was_found_is_kept_as_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("foretoken.memory.self_tests.path_of", lambda kind, key: tmp_path / kind / f"{key}.json")
    found, runs = SelfTest((1, 2), (1,), 3, 4, 0.25), []
    assert self_test_of("a", lambda: runs.append(1) or found) == self_test_of("a", lambda: runs.append(2)) == found
    written = tmp_path / "exact" / "a.json"
    assert runs == [1] and read_self_test(written) == found
    for wrong in (
        "",
        "[]",
        "{}",
        json.dumps(found.as_dict() | {"widths": [3, 2]}),
        json.dumps(found.as_dict() | {"cost": 1}),
    ):
        written.write_text(wrong)
        with pytest.raises(ForetokenError, match="could not be read"):
            read_self_test(written)
