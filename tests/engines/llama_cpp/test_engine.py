"""A GGUF file behind the front door: drafted text and drafted logits are those of plain decoding, to the bit."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest

import foretoken
from foretoken import DecodeStats, Draft, FixedBudget, ForetokenError, LanguageModel, decode
from foretoken.core.sampling import Sampling
from foretoken.engines.llama_cpp.choice import Choice
from foretoken.engines.llama_cpp.context import BRANCHES
from foretoken.engines.llama_cpp.engine import LlamaCppEngine
from foretoken.engines.llama_cpp.exact import self_test
from foretoken.engines.llama_cpp.target import MOST_ROWS, LlamaCppTarget
from foretoken.engines.transformers.loading import TINY
from helpers.commanding import call
from helpers.drafting import Oracle, RandomTrees
from helpers.gguf_files import KINDS, gguf_file

pytestmark = [
    pytest.mark.llama_cpp,
    pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs llama-cpp-python"),
]

PROMPTS = ["def area(width, height):\n", "Once upon a time", "x = [1, 2, 3, 1, 2, 3, 1, 2"]
SAMPLED = {"temperature": 0.8, "top_p": 0.95, "seed": 3}
DRAFTERS = ["mixed", "ngram", "recycle", "lookahead", "anpd", "prompt-lookup"]


@cache
def engine(kind: str = "q8_0", threads: int = 1, flash: bool = True) -> LlamaCppEngine:
    return LlamaCppEngine(gguf_file(kind), context=700, threads=threads, flash=flash, exact=True)


@cache
def lm(kind: str = "q8_0") -> LanguageModel:
    return LanguageModel(engine(kind), background=None)


@pytest.mark.parametrize("options", [{"temperature": 0}, SAMPLED, SAMPLED | {"repetition_penalty": 1.2, "top_k": 30}])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_text_is_the_same_whatever_drafts(prompt, options):
    plain = lm().generate(prompt, max_new_tokens=60, drafter="none", **options)
    for drafter in DRAFTERS:
        for budget in (None, FixedBudget(9)):
            drafted = lm().generate(prompt, max_new_tokens=60, drafter=drafter, budget=budget, **options)
            assert (drafted.tokens, drafted.text) == (plain.tokens, plain.text)


class Watched:
    """A drafter, and the logits of each row that chose a token, by the token's place."""

    def __init__(self, inner) -> None:
        self.inner, self.needs, self.logits = inner, frozenset(), {}

    def begin(self, prompt: Sequence[int]) -> None:
        self.inner.begin(prompt)
        self.length = len(prompt)

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        return self.inner.propose(context, max_tokens)

    def observe(self, step) -> None:
        for row, token in zip([0, *(1 + node for node in step.path)], step.tokens, strict=False):
            self.logits[self.length] = (token, step.scores.row_logits(row).copy())
            self.length += 1
        self.inner.observe(step)


def chosen_by(target: LlamaCppTarget, prompt: list[int], drafter, num_guesses=14) -> dict[int, tuple[int, np.ndarray]]:
    watched = Watched(drafter)
    stats = DecodeStats.of(decode(target, watched, prompt, max_new_tokens=48, budget=FixedBudget(num_guesses)))
    assert stats.tokens == len(watched.logits)
    return watched.logits


def differing(target: LlamaCppTarget, prompt: list[int], seed: int, vocab: int) -> tuple[int, int]:
    """Of how many rows the logits differ from plain decoding's, with trees that hold the answer and with any trees."""
    plain = chosen_by(target, prompt, Nothing())
    answer = [token for token, _ in plain.values()]
    count = different = 0
    for drafter in (
        Oracle(seed, prompt, answer, vocab),
        Oracle(seed + 1, prompt, answer, vocab),
        RandomTrees(seed, vocab),
    ):
        drafted = chosen_by(target, prompt, drafter, 14 if seed else 80)
        assert drafted.keys() == plain.keys()
        for place, (_, logits) in plain.items():
            count += 1
            different += not np.array_equal(logits, drafted[place][1])
    return different, count


class Nothing:
    """Guesses nothing."""

    def begin(self, prompt: Sequence[int]) -> None:
        pass

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        return Draft()

    def observe(self, step) -> None:
        pass


def text_of(length: int, vocab: int) -> list[int]:
    """Tokens that nothing can be learned from."""
    return [random.Random(length).randrange(vocab) for _ in range(length)]


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", [*KINDS, "q4_k_m"])
def test_every_committed_logit_is_plain_decodings_to_the_bit(kind, threads, flash):
    one = engine(kind, threads, flash)
    assert one.target().supports_trees == flash, "a branch sees what it sees in another order of cells"
    for seed, (length, sampling) in enumerate([(9, Sampling(0.0)), (240, Sampling(0.8, seed=4)), (300, Sampling(0.0))]):
        target = one.target()
        target.choice = Choice(sampling)
        different, count = differing(target, text_of(length, one.vocab_size), seed, one.vocab_size)
        assert different == 0 and count > 100


def test_a_single_row_of_floats_is_computed_otherwise():
    """The test above must be able to fail: in float32 plain steps of one row have other bits."""
    one = engine("f32")
    target = one.target()
    assert target.widths[0] == 2
    target.widths = range(1, MOST_ROWS + 1)
    different, _ = differing(target, text_of(40, one.vocab_size), 0, one.vocab_size)
    assert different > 50


def test_exactness_is_found_and_asked_for():
    for flash, kind, least in ((True, "f32", 2), (False, "f32", 2), (False, "q8_0", 2)):
        found = self_test(engine(kind)._contexts.but(flash=flash, length=320), engine(kind).vocab_size)
        assert found.passed and found.widths[0] == least and found.seconds > 0
    cheap = self_test(engine("f32")._contexts.but(flash=True, length=320), engine("f32").vocab_size, most_cost=-1.0)
    assert not cheap.passed and cheap.widths == (), "every way is too dear"
    assert engine("f32").exact and engine("f32").self_test.passed
    lax = LlamaCppEngine(gguf_file("f32"), context=64, threads=1, exact=False)
    assert not lax.exact and lax.target().widths[0] == 1


def test_greedy_text_is_that_of_transformers_where_the_types_are_the_same():
    theirs = foretoken.load("tiny", dtype="float32", device="cpu", background=None)
    for prompt in PROMPTS:
        assert engine("f32").encode(prompt) == theirs.encode(prompt)
        ours = lm("f32").generate(prompt, max_new_tokens=16, temperature=0)
        assert ours.text == theirs.generate(prompt, max_new_tokens=16, temperature=0).text


def test_a_conversation_goes_through_the_files_template():
    turns = [{"role": "user", "content": "What is rain?"}]
    theirs = foretoken.load("tiny", dtype="float32", device="cpu", background=None)
    assert lm().encode(turns) == theirs.encode(turns)
    said = lm().generate(turns, max_new_tokens=20, temperature=0)
    assert said.finish_reason == "length" or len(said.tokens) < 20


def test_text_comes_as_bytes_of_characters_come():
    text = "naïve café 東京 🙂 \t\n  x"
    tokens = engine().encode(text, add_special_tokens=False)
    detokenizer = engine().detokenizer([])
    assert "".join(detokenizer.push(token) for token in tokens) + detokenizer.flush() == text
    assert all(token in engine().special_tokens for token in ("<|user|>", "<|assistant|>"))


def test_the_command_line_takes_it(monkeypatch, capsys):
    words = ["--model", gguf_file("q8_0"), "--background", "none", "--max-new-tokens", "12", "--temperature", "0"]
    status, out, _ = call(monkeypatch, capsys, "compare", *words, "--prompt", PROMPTS[2], "--rounds", "1", "--json")
    assert status == 0 and json.loads(out)[0]["identical"]
    status, out, _ = call(monkeypatch, capsys, "generate", *words, "--prompt", PROMPTS[2])
    assert status == 0 and out.strip()


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.8, "seed": 3}])
def test_trained_heads_draft_from_the_states_of_a_file(options):
    """The bundled heads were trained on the bundled model's states; the file is that model in eight bits."""
    model = LlamaCppEngine(gguf_file("q8_0"), 700, 1, flash=True, exact=True, speculator=TINY / "speculator")
    heads = LanguageModel(model, background=None)
    for prompt in PROMPTS:
        plain = heads.generate(prompt, max_new_tokens=40, drafter="none", **options)
        for drafter in ("speculator", "mixed:heads=true"):
            drafted = heads.generate(prompt, max_new_tokens=40, drafter=drafter, budget=FixedBudget(40), **options)
            assert drafted.tokens == plain.tokens
            if drafter == "speculator":
                assert drafted.stats.accepted >= 10
    with pytest.raises(ForetokenError, match="share the model's output head"):
        LanguageModel(
            LlamaCppEngine(gguf_file("q8_0"), 700, 1, exact=False, speculator=TINY / "blockwise"), background=None
        ).generate("x", drafter="speculator")


def test_its_measurements_are_those_of_every_engine(monkeypatch, capsys, tmp_path):
    path, prompts = gguf_file("q8_0"), tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"id": "a", "kind": "pattern", "prompt": PROMPTS[2]}) + "\n")
    status, out, _ = call(monkeypatch, capsys, "check", path, "--max-new-tokens", "12", "--exact", "on", "--json")
    (report,) = json.loads(out)
    assert status == 0 and report["dtype"] == "Q8_0" and report["exact"] and report["identical"]
    assert report["noise"] == 0.0 and report["self_test"]["widths"]
    words = ["--background", "none", "--prompts", prompts, "--rounds", "1", "--max-new-tokens", "12", "--exact", "on"]
    words += ["--temperature", "0", "--out", tmp_path / "found.json"]
    status, out, _ = call(monkeypatch, capsys, "bench", "methods", "--model", path, "--method", "ngram", *words)
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert status == 0 and [(row["method"], row["dtype"]) for row in rows] == [("plain", "Q8_0"), ("ngram", "Q8_0")]
    status, out, _ = call(monkeypatch, capsys, "bench", "llama-cpp", path, *words)
    lines = json.loads((tmp_path / "found.json").read_text())["lines"]
    assert status == 0 and {line["method"] for line in lines} >= {"plain", "chain", "auto", "llama-cpp-python"}
    assert all(line["same_text"] == line["prompts"] == 1 and line["cpu_speed"] > 0 for line in lines)
    status, _, said = call(monkeypatch, capsys, "check", path, "--dtype", "float32")
    assert status == 2 and "A GGUF file has its types in it" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": "float32"}, "A GGUF file has its types in it"),
        ({"speculator": "/nowhere"}, "There is no speculator folder '/nowhere'"),
        ({"drafter": "early-exit"}, "early-exit"),
    ],
)
def test_what_a_file_cannot_honour_is_refused(options, sentence):
    with pytest.raises(ForetokenError, match=sentence):
        foretoken.load(str(gguf_file("q8_0")), background=None, **options)


def test_a_truncated_file_is_refused_with_what_llama_cpp_says(tmp_path):
    path = tmp_path / "short.gguf"
    path.write_bytes(gguf_file("q8_0").read_bytes()[:200_000])
    with pytest.raises(ForetokenError, match=r"llama.cpp cannot load .*short\.gguf.*: "):
        LlamaCppEngine(path)


def test_prompts_and_drafts_that_are_too_large_are_refused():
    with pytest.raises(ForetokenError, match="700"):
        lm().generate("x " * 2000)
    target = engine().target()
    target.prefill([1])
    wide = Draft((1,) * (BRANCHES + 2), (-1,) * (BRANCHES + 2))
    with pytest.raises(ForetokenError, match=f"a forward takes {BRANCHES}: use a smaller budget"):
        target.score(2, wide)
    assert len(target.score(2, Draft.chain([1] * 3)).top(range(4), 2).tokens) == 4, "nothing is lost"


def test_answers_may_take_turns_and_an_answer_may_be_left():
    alone = [lm().generate(prompt, max_new_tokens=20, **SAMPLED).text for prompt in PROMPTS]
    streams = [lm().stream(prompt, max_new_tokens=20, **SAMPLED) for prompt in PROMPTS]
    texts = ["" for _ in streams]
    waiting = {i: iter(stream) for i, stream in enumerate(streams)}
    while waiting:
        for i in list(waiting):
            chunk = next(waiting[i], None)
            if chunk is None:
                del waiting[i]
            else:
                texts[i] += chunk.text
    assert texts == alone
    next(iter(lm().stream(PROMPTS[0], max_new_tokens=20)))
    assert lm().generate(PROMPTS[1], max_new_tokens=20, **SAMPLED).text == alone[1]
