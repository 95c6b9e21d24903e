"""The engine's promises: what the cache holds, what a tree's rows see, what is refused."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache, DynamicIndexedLayer

import foretoken
from foretoken import Draft, FixedBudget, ForetokenError, decode
from foretoken.core.noise import gumbel as plain_gumbel
from foretoken.engines.transformers.cache import KVCache
from foretoken.engines.transformers.choice import Choice, gumbel
from foretoken.engines.transformers.positions import context_length
from foretoken.engines.transformers.scores import TransformersScores
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.engines.transformers.tree_mask import tree_mask
from helpers.drafting import Oracle, RandomTrees
from helpers.shapes import CONFIGS, LLAMA, SMALL, VOCAB, tiny_model

NOISE = 2e-4  # what rounding may move a logit by, in float32, at logits of this size


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.inference_mode()
def test_a_trees_rows_score_as_their_paths_do(shape, attention):
    """Row by row against a forward over the whole path, past the sliding window too."""
    model = tiny_model(shape, attention)
    target = TransformersTarget(model)
    draft = Draft((5, 6, 7, 8, 9, 6, 5), (-1, 0, 1, -1, 3, 3, 2))
    for length in (1, 13, 40):
        prompt = torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        target.prefill(prompt)
        scores = target.score(11, draft)
        for row in range(1 + len(draft)):
            alone = model(torch.tensor([[*prompt, 11, *draft.path(row - 1)]])).logits[0, -1]
            assert (scores.logits[row] - alone).abs().max() < NOISE


@pytest.mark.parametrize("shape", CONFIGS)
def test_the_cache_after_keep_is_one_built_from_scratch(shape):
    model = tiny_model(shape)
    target = TransformersTarget(model)
    context = [7, 3, 9, 9, 2]
    for step in decode(target, RandomTrees(3, VOCAB), context, max_new_tokens=30):
        context = [*context, *step.tokens]
        fresh = TransformersTarget(model)
        fresh.prefill(context[:-1])
        assert target.num_cached == len(context) - 1
        for layer, expected in zip(target.cache.states.layers, fresh.cache.states.layers, strict=True):
            torch.testing.assert_close(layer.keys, expected.keys, atol=NOISE, rtol=1e-4)
            torch.testing.assert_close(layer.values, expected.values, atol=NOISE, rtol=1e-4)


def test_a_wrong_gather_is_caught():
    """The test above must be able to fail: rows left where the tree wrote them are another cache."""

    class Forgetful(KVCache):
        def _gather(self, path):
            pass

    model = tiny_model("llama")
    plain = [t for s in decode(TransformersTarget(model), None, [7, 3], max_new_tokens=40) for t in s.tokens]

    class Second(RandomTrees):
        def propose(self, context, max_tokens):
            right = plain[len(context) - 2 :][:2]
            return Draft((right[0] ^ 1, *right), (-1, -1, *([1] * (len(right) - 1))))

    def answer(target):
        return [t for s in decode(target, Second(0, VOCAB), [7, 3], max_new_tokens=40) for t in s.tokens]

    assert answer(TransformersTarget(model)) == plain != answer(TransformersTarget(model, cache=Forgetful(model)))


@pytest.mark.parametrize("shape", ["llama", "mistral", "gemma3", "gpt2"])
def test_prefill_in_chunks_is_prefill(shape):
    model = tiny_model(shape)
    prompt = torch.randint(0, VOCAB, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    whole = TransformersTarget(model).prefill(prompt)
    for chunk in (1, 7, 49, 50):
        chunked = TransformersTarget(model, prefill_chunk=chunk).prefill(prompt)
        torch.testing.assert_close(chunked.logits, whole.logits, atol=NOISE, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", CONFIGS)
def test_half_precision_runs_with_trees(shape, dtype):
    """Not equality, which rounding may break: that the tokens are as many, and mostly the same."""
    target = TransformersTarget(tiny_model.__wrapped__(shape, dtype=dtype))
    answers = [
        [t for s in decode(target, drafter, [7, 3, 9], max_new_tokens=20) for t in s.tokens]
        for drafter in (None, RandomTrees(0, VOCAB))
    ]
    assert len(answers[0]) == len(answers[1]) == 20 and answers[0][:2] == answers[1][:2]


class InFloat32(torch.nn.Module):
    """A layer that computes in another type than the embedding has, as quantized ones do."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.float())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_trees_run_where_weights_are_of_several_types(attention):
    model = copy.deepcopy(tiny_model("llama", attention))
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, torch.nn.Linear):
                setattr(module, name, InFloat32(layer))
    model.model.embed_tokens.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    prompt = torch.tensor([[5, 9, 4, 1]])
    theirs = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False)
    answer = theirs[0, 4:].tolist()
    drafter = Oracle(0, [5, 9, 4, 1], answer, VOCAB)
    steps = list(decode(TransformersTarget(model), drafter, [5, 9, 4, 1], max_new_tokens=40, budget=FixedBudget(6)))
    assert [token for step in steps for token in step.tokens] == answer
    assert not all(step.draft.is_chain for step in steps)


def test_a_target_answers_one_prompt_after_another():
    target = TransformersTarget(tiny_model("llama"))
    answers = [[s.tokens for s in decode(target, None, [1, 2], max_new_tokens=9)] for _ in range(2)]
    assert answers[0] == answers[1]


def test_processors_run_once_for_each_token_of_the_answer_with_its_own_path():
    """As plain decoding calls them, so that even a processor with a memory gives the same text."""

    def record(calls):
        def process(ids, scores):
            calls.append(ids[0].tolist())
            return scores - 2.0 * (len(calls) % 3) * torch.nn.functional.one_hot(ids[0, -1], VOCAB)

        return process

    model, plain_calls, drafted_calls = tiny_model("llama"), [], []
    plain = TransformersTarget(model, Choice(record(plain_calls), seed=4))
    drafted = TransformersTarget(model, Choice(record(drafted_calls), seed=4))
    tokens = [t for s in decode(plain, None, [1, 2], max_new_tokens=40) for t in s.tokens]
    steps = list(decode(drafted, RandomTrees(1, VOCAB), [1, 2], max_new_tokens=40))
    assert [t for s in steps for t in s.tokens] == tokens
    assert drafted_calls == plain_calls and len(plain_calls) == 40


def test_scores_still_answer_for_their_own_rows_when_a_drafter_observes():
    """By then the accepted path has been committed; a row asked late is the row it was."""
    model = tiny_model("llama")
    choice = Choice(tf.RepetitionPenaltyLogitsProcessor(1.7), seed=4)

    class Asking(RandomTrees):
        def begin(self, prompt):
            self.context = list(prompt)

        def observe(self, step):
            for row in range(1 + len(step.draft)):
                ids = torch.tensor([[*self.context, *step.draft.path(row - 1)]])
                assert step.scores.choose(row) == choice.choose(ids, step.scores.logits[row])
            self.context += step.tokens

    tokens = [t for s in decode(TransformersTarget(model, choice), None, [1, 2], max_new_tokens=30) for t in s.tokens]
    asked = decode(TransformersTarget(model, choice), Asking(1, VOCAB), [1, 2], max_new_tokens=30)
    assert [t for s in asked for t in s.tokens] == tokens


@pytest.mark.parametrize("drafter", [None, RandomTrees(0, VOCAB)])
def test_float64_logits_that_are_one_number_in_float32_tie_as_transformers_has_it(drafter):
    """Its loop takes the argmax in float32, where the first of equals wins."""
    model = copy.deepcopy(tiny_model("llama", dtype=torch.float64))
    half = VOCAB // 2
    with torch.no_grad():  # each token of the second half beats one of the first by a hair, or loses by one
        model.lm_head.weight[half : 2 * half] = model.lm_head.weight[:half] * (1 + 1e-12)
    prompt = torch.tensor([[5, 9, 4, 1]])
    theirs = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False)
    steps = decode(TransformersTarget(model), drafter, prompt[0].tolist(), max_new_tokens=40)
    assert [token for step in steps for token in step.tokens] == theirs[0, 4:].tolist()


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6), st.lists(st.integers(0, 300_000), min_size=1, max_size=20))
def test_noise_in_torch_is_the_cores(seed, position, tokens):
    expected = [plain_gumbel(seed, position, token) for token in tokens]
    torch.testing.assert_close(
        gumbel(seed, position, torch.tensor(tokens)), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_choices_follow_the_processed_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")])
    ids = torch.zeros(1, 3, dtype=torch.long)
    counts = torch.zeros(5)
    for seed in range(8000):
        counts[Choice(seed=seed).choose(ids, logits)] += 1
    expected = logits.softmax(0)
    assert (counts / 8000 - expected).abs().max() < 0.02 and counts[4] == 0
    assert Choice().choose(ids, logits) == 0
    assert Choice(seed=1).choose(ids, torch.tensor([1e12, 5.0])) == 0, "as at tiny temperatures"


@settings(deadline=None)
@given(
    scores=st.lists(st.sampled_from([-math.inf, 0.0, 0.5, 1.0, 3.0, 60.0]), min_size=2, max_size=9),
    seed=st.none() | st.integers(0, 2**64 - 1),
    processed=st.booleans(),
)
def test_the_runner_up_is_the_second_of_what_the_choice_compares(scores, seed, processed):
    asked = []

    def process(ids, logits):
        asked.append(ids)
        return 2 * logits

    target = TransformersTarget(tiny_model("llama"), Choice(process if processed else None, seed))
    rows = TransformersScores(target, torch.tensor([[*scores, 1.5]]), Draft())
    noise = [0.0 if seed is None else plain_gumbel(seed, 0, token) for token in range(len(scores) + 1)]
    compared = [(1 + processed) * x + g for x, g in zip([*scores, 1.5], noise, strict=True)]
    (second, lead), best = rows.runner_up(0), rows.choose(0)
    assert rows.runner_up(0) == (second, lead) and len(asked) == processed
    rest = sorted(set(range(len(compared))) - {best}, key=compared.__getitem__)
    gap = compared[best] - compared[rest[-1]]
    assert gap >= 0 and (lead == math.inf or lead == pytest.approx(gap, abs=1e-4))
    assert gap < 30 or lead >= 30, "without noise or far behind, it may be taken for one that cannot be chosen"
    if lead < math.inf:
        assert second != best and compared[second] == pytest.approx(compared[rest[-1]], abs=1e-4)


def test_a_windows_mask_hides_what_is_further_back():
    mask, positions = tree_mask(Draft((1, 2, 3), (-1, 0, -1)), 4, 3, torch.float32, torch.device("cpu"))
    seen = (mask[0, 0] == 0).int().tolist()
    assert positions.tolist() == [[4, 5, 6, 5]]
    assert seen == [
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 0, 0, 1],
    ]


def long_phi3() -> tf.PreTrainedModel:
    """Phi-3's long variant with its border at 32 tokens."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    border: dict[str, Any] = {"original_max_position_embeddings": 32}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **border, **factors}
    config = tf.Phi3Config(**{**LLAMA, "max_position_embeddings": 128}, **border, rope_parameters=rope)
    return tf.AutoModelForCausalLM.from_config(config).eval()


def test_rotary_positions_that_switch_are_not_crossed():
    """Phi-3's long positions take other frequencies beyond a length, for every row of the forward that reaches it."""
    torch.manual_seed(1)
    target = TransformersTarget(long_phi3())
    answers = [
        [t for s in decode(target, drafter, [7, 3, 9], max_new_tokens=60) for t in s.tokens]
        for drafter in (None, RandomTrees(0, VOCAB))
    ]
    assert answers[0] == answers[1]
    target.prefill([1] * 28)
    assert target.max_draft_depth == 3
    target.prefill([1] * 40)
    assert target.max_draft_depth == 128 - 41


def test_a_text_that_crosses_into_long_positions_is_read_anew():
    """Phi-3's own generate reads the whole text with the other frequencies, once it is too long for the first."""
    torch.manual_seed(1)
    model = long_phi3()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 2 / parameter.shape[1] ** 0.5)
    for length in (3, 20, 31, 32, 33, 40):
        prompt = torch.randint(2, VOCAB, (1, length), generator=torch.Generator().manual_seed(length))
        options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 50, "do_sample": False}
        theirs = model.generate(prompt, **options)
        for drafter in ("none", "mixed", Oracle(0, prompt[0].tolist(), theirs[0, length:].tolist(), VOCAB)):
            options |= {"custom_generate": foretoken.generate, "drafter": drafter, "budget": FixedBudget(6)}
            assert torch.equal(model.generate(prompt, **options), theirs)


def test_models_that_cannot_rewind_are_refused_before_prefill():
    t5 = tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=VOCAB, d_model=16, d_ff=16, num_layers=1, d_kv=4))
    with pytest.raises(ForetokenError, match="not a decoder-only language model"):
        TransformersTarget(t5)
    bert = tf.BertModel(tf.BertConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ForetokenError, match="not a decoder-only language model"):
        TransformersTarget(bert)
    gpt = tf.OpenAIGPTLMHeadModel(tf.OpenAIGPTConfig(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ForetokenError, match=r"OpenAIGPTLMHeadModel is not .* with a cache"):
        TransformersTarget(gpt)
    cache = tf.DynamicCache()
    cache.layers.append(DynamicIndexedLayer())  # as DeepSeek's sparse attention has
    llama = tiny_model("llama")
    with pytest.raises(ForetokenError, match="DynamicIndexedLayer"):
        TransformersTarget(llama, cache=cache)
    with pytest.raises(ForetokenError, match="StaticLayer"):
        TransformersTarget(llama, cache=tf.StaticCache(config=llama.config, max_cache_len=64))


def test_a_cache_that_holds_the_whole_prompt_is_refused():
    model = tiny_model("llama")
    cache = tf.DynamicCache(config=model.config)
    TransformersTarget(model, cache=cache).prefill([1, 2, 3])
    with pytest.raises(ForetokenError, match="already holds 3 tokens"):
        TransformersTarget(model, cache=cache).prefill([1, 2, 3])


class Logical(DynamicCache):
    """Keeps a few keys and tells how many tokens it has seen, as caches with sinks do."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 10


@pytest.mark.parametrize("cache", [Logical(), tf.EncoderDecoderCache(DynamicCache(), DynamicCache())])
def test_a_cache_that_counts_in_a_way_of_its_own_is_refused(cache):
    with pytest.raises(ForetokenError, match=f"{type(cache).__name__} counts tokens"):
        TransformersTarget(tiny_model("llama"), cache=cache)


@pytest.mark.parametrize("num_rows", [4, 1])
def test_keys_that_somebody_else_drops_are_noticed(num_rows):
    """Hooks on attention layers that compress the cache, in the prefill or from token to token."""
    model = copy.deepcopy(tiny_model("llama"))

    def compress(attention, arguments, keywords, output):
        layer = keywords["past_key_values"].layers[attention.layer_idx]
        if keywords["hidden_states"].shape[1] == num_rows:
            layer.keys, layer.values = layer.keys[:, :, 1:], layer.values[:, :, 1:]

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(compress, with_kwargs=True)
    steps = decode(TransformersTarget(model), None, [5, 9, 4, 1], max_new_tokens=5)
    with pytest.raises(ForetokenError, match="something drops keys"):
        list(steps)


def test_score_wants_keep_before_the_next():
    target = TransformersTarget(tiny_model("llama"))
    target.prefill([1])
    target.score(2, Draft.chain([3]))
    with pytest.raises(RuntimeError, match="keep must follow score"):
        target.score(2, Draft.chain([3]))


def test_models_without_positions_take_chains():
    bloom = tf.BloomForCausalLM(tf.BloomConfig(**SMALL, hidden_size=16, n_layer=1, n_head=2)).eval()
    target = TransformersTarget(bloom)
    assert not target.supports_trees
    answers = [
        [t for s in decode(target, drafter, [7, 3], max_new_tokens=20) for t in s.tokens]
        for drafter in (None, RandomTrees(0, VOCAB))
    ]
    assert answers[0] == answers[1]


def test_windows_that_a_model_may_ignore_leave_chains():
    torch.manual_seed(0)
    stray = tf.AutoModelForCausalLM.from_config(tf.LlamaConfig(**LLAMA, sliding_window=8)).eval()
    gpt_neo = tf.GPTNeoConfig(
        **SMALL, hidden_size=16, num_layers=2, num_heads=2, window_size=8, attention_types=[[["global", "local"], 1]]
    )
    for model in (stray, tf.AutoModelForCausalLM.from_config(gpt_neo).eval()):
        target = TransformersTarget(model)
        assert not target.supports_trees
        answers = [
            [t for s in decode(target, drafter, [7, 3, 9] * 6, max_new_tokens=30) for t in s.tokens]
            for drafter in (None, RandomTrees(0, VOCAB))
        ]
        assert answers[0] == answers[1]


def test_long_positions_are_not_mixed_by_chunks():
    model = long_phi3()
    prompt = list(range(60))
    logits = [TransformersTarget(model, prefill_chunk=chunk).prefill(prompt).logits for chunk in (16, 4096)]
    torch.testing.assert_close(*logits)


def test_the_context_length_is_the_configs():
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512}
    stretched = tf.AutoModelForCausalLM.from_config(tf.LlamaConfig(**LLAMA, rope_parameters=yarn))
    assert context_length(stretched) == 2048
    assert context_length(tiny_model("gpt2")) == context_length(tiny_model("llama")) == 512


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TIE = 0.05  # two bfloat16 logits of these models that are closer may change places


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", [None, 3])
def test_drafted_tokens_are_the_plain_ones_on_every_device(device, seed):
    model = tiny_model.__wrapped__("llama").to(device)
    plain, drafted = answers(model, Choice(seed=seed))
    assert drafted == plain


def test_forwards_in_one_thread_are_timed_by_what_that_thread_does():
    """So that neither another client of a server nor another program makes a budget think that rows cost more."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = TransformersTarget(tiny_model("llama"))
        torch.set_num_threads(2)
        together = TransformersTarget(tiny_model("llama"))
    finally:
        torch.set_num_threads(before)
    assert (alone.clock, together.clock) == (time.thread_time, time.perf_counter)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", [None, 3])
def test_half_precision_parts_only_at_a_near_tie(device, seed):
    model = tiny_model.__wrapped__("llama", dtype=torch.bfloat16).to(device)
    choice = Choice(seed=seed)
    plain, drafted = answers(model, choice)
    leads = []
    for position in range(len(plain)):
        scores = TransformersTarget(model, choice).prefill(PROMPT + plain[:position])
        leads.append(scores.runner_up(0)[1])
        if plain[position] != drafted[position]:
            assert {scores.choose(0), scores.runner_up(0)[0]} == {plain[position], drafted[position]}
            assert leads[-1] < TIE
            break
    # Otherwise a wrong token would pass for a tie.
    assert sum(lead < TIE for lead in leads) <= len(leads) / 4


PROMPT = [7, 3, 9]


def answers(model, choice):
    """60 tokens plainly, and with drafts that are mostly wrong."""
    target = TransformersTarget(model, choice)
    return [
        [token for step in decode(target, drafter, PROMPT, max_new_tokens=60) for token in step.tokens]
        for drafter in (None, RandomTrees(0, VOCAB))
    ]
