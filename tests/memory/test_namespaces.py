"""What is remembered, for whom, and that no text changes by it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken import AdaptiveBudget, FixedBudget, ForetokenError, LanguageModel, Step
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.memory.corpus import general
from foretoken.memory.corpus.build import build
from foretoken.memory.fingerprint import fingerprint
from foretoken.memory.history import History
from foretoken.memory.namespace import MAX_WAITING, Namespace
from foretoken.ngrams.shared import OBJECTS_BYTES, SharedNgrams
from helpers.shapes import tiny_model
from helpers.tokenizing import character_tokenizer

PROMPT = "the quick brown fox "
# Seven guesses a step whatever they cost, so that what is accepted does not hang on the clock.
ALL = FixedBudget(7)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A background corpus of the model's own words for a prompt of its own."""
    tokenizer, folder = character_tokenizer(), tmp_path_factory.mktemp("corpus")
    answer = model().generate("abc", max_new_tokens=60, drafter="none").tokens
    build([[*tokenizer("abc")["input_ids"], *answer]], None, fingerprint(tokenizer), folder)
    return folder


def model(history: Path | None = None, background: str | Path | None = None) -> LanguageModel:
    return LanguageModel(
        tiny_model("llama"), character_tokenizer(), background=background, history=History(history) if history else None
    )


def accepted(lm: LanguageModel, prompt: str = PROMPT, **options) -> int:
    asked: dict[str, Any] = {"max_new_tokens": 60, "budget": ALL} | options
    result = lm.generate(prompt, **asked)
    plain = lm.generate(prompt, drafter="none", max_new_tokens=60, namespace=None)
    assert result.tokens == plain.tokens
    return result.stats.accepted


def test_an_answer_given_before_is_drafted_from():
    lm = model()
    first = accepted(lm)
    assert accepted(lm) > first + 20
    assert accepted(lm, "different words, then the quick brown fox ", namespace="other") < first + 20


def test_namespaces_do_not_see_each_other(tmp_path):
    lm = model(tmp_path / "history.sqlite")
    first = accepted(lm, namespace="a")
    assert accepted(lm, namespace="b") == accepted(lm, namespace="c") == first < accepted(lm, namespace="a")
    again = model(tmp_path / "history.sqlite")
    for namespace in ("a", "d"):
        assert again.memories.of(namespace).ngrams
    again.memories.wait()
    assert accepted(again, namespace="d") == first < accepted(again, namespace="a")


def test_no_namespace_remembers_nothing(tmp_path):
    lm = model(tmp_path / "history.sqlite")
    assert accepted(lm, namespace=None) == accepted(lm, namespace=None) == accepted(lm)
    with History(tmp_path / "history.sqlite") as history:
        assert [(row.namespace, row.answers) for row in history.stats()] == [("default", 1)]


def test_answers_outlive_the_process(tmp_path):
    first = accepted(model(tmp_path / "history.sqlite"))
    later = model(tmp_path / "history.sqlite")
    assert later.memories.of("default").ngrams
    later.memories.wait()
    assert accepted(later) > first + 20


def test_a_reference_that_is_quoted_raises_acceptance():
    lm = model()
    quoted = lm.generate(PROMPT, max_new_tokens=60, drafter="none", namespace=None).text
    alone = accepted(lm, namespace=None)
    assert accepted(lm, namespace=None, references=["something else", "", PROMPT + quoted]) > alone + 20
    assert accepted(lm, namespace=None, references=["something else"]) <= alone + 5


def test_a_background_corpus_is_drafted_from(corpus):
    assert accepted(model(background=corpus), "abc", namespace=None) > accepted(model(), "abc", namespace=None) + 20


@settings(max_examples=15, deadline=None)
@given(
    prompt=st.text("abc de,é", min_size=1, max_size=20),
    references=st.lists(st.text("abc de,é", max_size=40), max_size=3),
    temperature=st.sampled_from([0.0, 0.9, 1.3]),
    seed=st.integers(0, 2**64 - 1),
    adaptive=st.booleans(),
)
def test_the_text_is_the_same_with_all_of_it(corpus, remembering, prompt, references, temperature, seed, adaptive):
    options = {"max_new_tokens": 32, "temperature": temperature, "seed": seed}
    plain = remembering.generate(prompt, drafter="none", namespace=None, **options)
    free = AdaptiveBudget(costs={1: 0.02, 33: 0.021})  # so that it does draft
    for budget in (free if adaptive else ALL, None):
        drafted = remembering.generate(prompt, references=references, budget=budget, **options)
        assert (drafted.tokens, drafted.text) == (plain.tokens, plain.text)


@pytest.fixture(scope="module")
def remembering(corpus, tmp_path_factory) -> LanguageModel:
    return model(tmp_path_factory.mktemp("history") / "history.sqlite", corpus)


def test_an_answer_left_in_the_middle_is_not_remembered_and_hurts_nobody(tmp_path):
    lm = model(tmp_path / "history.sqlite")
    for _, _ in zip(lm.stream(PROMPT, max_new_tokens=60), range(10), strict=False):
        pass
    assert lm.memories.of("default").ngrams.answers.num_tokens == 0
    assert History(tmp_path / "history.sqlite").stats() == []
    assert accepted(lm) > 0


def test_threads_may_share_a_model(tmp_path):
    lm = model(tmp_path / "history.sqlite")
    prompts = ("abc", PROMPT, "é, é, é")
    plain = {prompt: lm.generate(prompt, max_new_tokens=40, drafter="none").tokens for prompt in prompts}
    wrong: list[object] = []

    def work(namespace: str) -> None:
        try:
            for prompt in prompts * 2:
                assert lm.generate(prompt, max_new_tokens=40, namespace=namespace).tokens == plain[prompt]
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "aabb"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"references": "one string"}, "give a list of documents"),
        ({"references": 5}, "references is 5"),
        ({"references": ["a", None]}, "A reference is None"),
        ({"references": [b"bytes"]}, "A reference is b'bytes'"),
        ({"references": ["a\udcff"]}, "no text"),
        ({"namespace": 5}, "The namespace 5 is no text"),
        ({"namespace": ["a"]}, "The namespace .* is no text"),
        ({"namespace": "a\udcff"}, "is no text"),
        ({"namespace": b"a"}, "The namespace b'a' is no text"),
        ({"namespace": ""}, "The namespace is empty"),
        ({"namespace": float("nan")}, "The namespace nan is no text"),
    ],
)
@pytest.mark.parametrize("drafter", ["mixed", "anpd", "none"])
def test_what_is_no_text_is_refused_before_any_forward(tmp_path, monkeypatch, options, said, drafter):
    lm = model(tmp_path / "history.sqlite")
    monkeypatch.setattr(TransformersTarget, "prefill", lambda *_: pytest.fail("a forward"))
    with pytest.raises(ForetokenError, match=said):
        lm.generate("abc", max_new_tokens=5, drafter=drafter, **options)
    with pytest.raises(ForetokenError, match=said):
        lm.stream("abc", max_new_tokens=5, drafter=drafter, **options)
    with pytest.raises(ForetokenError, match=said):
        lm.generate(["abc", "abcd"], max_new_tokens=5, drafter=drafter, **options)
    assert not lm.memories._by_namespace


def test_a_corpus_of_another_tokenizer_is_refused(tmp_path):
    build([[1, 2, 3]], None, "another", tmp_path / "store")
    with pytest.raises(ForetokenError, match="built with another tokenizer"):
        model(background=tmp_path / "store")
    with pytest.raises(ForetokenError, match="There is no background corpus"):
        model(background=tmp_path / "none")


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(general, "phrases", lambda: ["abc abc abc", "once upon a time"])


def test_the_shipped_corpus_comes_when_it_is_ready(few, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    lm = model(background="general")
    before, later = lm.memories.of("early").ngrams, lm.memories.of("early, and asked later")
    lm.memories.wait()
    assert all(ngrams.frozen.rows.size for ngrams in (before, later.ngrams, lm.memories.of(None).ngrams))
    assert accepted(lm, "abc") >= 0


def test_without_a_place_to_write_there_is_a_warning_and_the_same_text(few, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "foretoken"):
        lm = model(tmp_path / "file" / "history.sqlite", "general")
        lm.memories.wait()
        first = accepted(lm)
        assert accepted(lm) > first + 20, "what was answered in this process is remembered all the same"
    corpus, history = sorted(record.getMessage() for record in caplog.records)
    assert "background corpus could not be kept" in corpus and "Drafting goes on without it" in corpus
    assert "answers go on without it" in history


def test_a_tokenizer_that_fails_in_the_background_is_a_warning(tmp_path, monkeypatch, caplog):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Already borrowed")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setattr("foretoken.engines.transformers.tokens.fingerprint", fail)
    lm = model(background="general")
    lm.memories.wait()
    (record,) = caplog.records
    assert "Already borrowed" in record.getMessage()


def test_tokens_that_the_model_does_not_have_are_never_asked_of_it(tmp_path):
    """In a history, of a tokenizer that has grown; in a corpus, or in a drafter of one's own."""
    lm = model(tmp_path / "history.sqlite")
    assert lm.memories._history is not None
    lm.memories._history.add("default", lm.memories.fingerprint, [*lm.encode("abc"), 10**6, 5])
    assert lm.memories.of("default").ngrams
    lm.memories.wait()
    assert lm.memories.of("default").ngrams.answers.num_tokens == 0
    lm.memories.of("default").ngrams.add([*lm.encode("abc"), 10**6, 5, 10**6, 5, 10**6] * 3)
    assert accepted(lm, "abc") >= 0


# Ends while the corpus is made: at once, or as soon as the tokenizer is at work. What is registered first runs last:
# then nobody may be at work any more, since the interpreter is taken apart.
ENDS = """
import atexit, sys, threading
atexit.register(lambda: print(*(thread.is_alive() for thread in loading._threads)))
from foretoken.memory import namespaces
from foretoken.memory.fingerprint import fingerprint
from foretoken.tokenizing import batch_encoder, load_tokenizer

class Vocabulary:
    tokenizer = load_tokenizer("tiny")
    fingerprint, vocab_size = fingerprint(tokenizer), tokenizer.get_vocab_size()

    def batch_encoder(self):
        encode = batch_encoder(self.tokenizer)
        return lambda texts: at_work.set() or encode(texts)

namespaces.EXIT_SECONDS = 600  # however busy the machine is
at_work = threading.Event()
loading = namespaces.Namespaces(Vocabulary(), "general")
if sys.argv[1] == "at work":
    at_work.wait()
"""
ENDS_WITH_A_MODEL = """
import sys, time, foretoken
foretoken.load(sys.argv[2], history=False)
time.sleep(0 if sys.argv[1] == "at once" else 1)
"""


@pytest.mark.parametrize("code", [ENDS, pytest.param(ENDS_WITH_A_MODEL, marks=pytest.mark.slow)])
@pytest.mark.parametrize("when", ["at once", "at work"])
def test_a_program_may_end_while_the_corpus_is_made(model_folder, tmp_path, code, when):
    places = dict.fromkeys(("XDG_CACHE_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"), str(tmp_path))
    environment = os.environ | places | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", code, when, str(model_folder)]
    program = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert (program.returncode, program.stdout) == (0, "False\n" if code == ENDS else "")
    assert not any(word in program.stderr for word in ("Fatal", "Traceback", "Exception", "terminate"))


class Clock:
    """Stands still but for forwards, which take as long as their rows say."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    thread_time = perf_counter


PRICES = {"cheap": lambda rows: 1 + 0.03 * rows, "dear": lambda rows: 1 + 0.4 * rows}


@pytest.fixture(params=PRICES)
def clock(request, monkeypatch, tmp_path) -> Clock:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # what rows cost by this clock is not kept for others
    monkeypatch.setattr("foretoken.memory.costs._KNOWN", {})
    clock, score = Clock(), TransformersTarget.score

    def timed(self, last_token, draft):
        clock.seconds += PRICES[request.param](1 + len(draft))
        return score(self, last_token, draft)

    for module in ("core.contracts", "core.measuring", "engines.transformers.target"):
        monkeypatch.setattr(f"foretoken.{module}.time", clock)
    monkeypatch.setattr(TransformersTarget, "score", timed)
    return clock


OF_A = [
    [],
    [{"prompt": PROMPT, "max_new_tokens": 40}] * 2,
    [{"prompt": PROMPT, "max_new_tokens": 60, "temperature": 3.0, "seed": 1}],
    [{"prompt": PROMPT, "max_new_tokens": 20, "drafter": "lookahead"}, {"prompt": "abc", "budget": FixedBudget(60)}],
]


@pytest.mark.parametrize("of_b", [{}, {"drafter": "lookahead"}])
def test_one_is_drafted_for_as_if_another_had_never_been_there(clock, of_b):
    def sizes(lm: LanguageModel, namespace: str | None) -> list[list[tuple[int, int]]]:
        """Rows and accepted tokens of each step of B's two answers."""
        answers = []
        for prompt in ("é, é, é, ", PROMPT):
            steps: list[Step] = []
            for step, chunks in lm.stream(prompt, max_new_tokens=25, namespace=namespace, **of_b).steps():
                steps.append(step)
                assert len(list(chunks)) == len(step.tokens) + (step.finish_reason is not None)
            answers.append([(len(step.draft), step.num_accepted) for step in steps])
        return answers

    seen: dict[str | None, list[object]] = {"b": [], None: [], "a": []}
    for requests in OF_A:
        lm = model()
        for options in requests:
            lm.generate(namespace="a", **{"max_new_tokens": 25} | options)
        for namespace, answers in seen.items():
            answers.append(sizes(lm, namespace))
    for other in ("b", None):
        assert seen[other] == [seen[other][0]] * len(OF_A)
    assert any(answers != seen["a"][0] for answers in seen["a"]), "A itself notices"


def test_nothing_is_learned_of_costs_without_a_namespace(clock):
    lm = model()
    first, second = (lm.generate(PROMPT, max_new_tokens=60, namespace=None).stats.steps for _ in range(2))
    assert first == second
    assert not lm.memories._by_namespace and lm.budget.costs.as_dict() == lm.costs.as_dict()


def test_a_namespace_that_asked_little_takes_little():
    lm = model()
    for name, length in (("short", 4), ("longer", 24)):
        lm.generate(PROMPT, max_new_tokens=length, namespace=name, temperature=1.0, seed=1)
    short, longer = (lm.memories.of(name).nbytes for name in ("short", "longer"))
    assert short < 64 * 1024 and longer < 128 * 1024


def test_memories_are_bounded_and_the_least_recently_used_goes_first(tmp_path):
    lm = model(tmp_path / "history.sqlite")
    first = accepted(lm, namespace="old")
    each = lm.memories.of("old").nbytes
    lm.memories._max_bytes = 3 * each + each // 2
    for name in ("b", "c", "old", "d", "e", "f"):
        accepted(lm, namespace=name)
        assert sum(memory.nbytes for memory in lm.memories._by_namespace.values()) <= lm.memories._max_bytes
    assert list(lm.memories._by_namespace) == ["d", "e", "f"]
    assert lm.memories.of("old").ngrams
    lm.memories.wait()
    assert accepted(lm, namespace="old") > first + 20, "the history still has its answers"


def test_an_answer_that_runs_keeps_its_memory():
    lm = model()
    lm.memories._max_bytes = 1
    running = iter(lm.stream(PROMPT, max_new_tokens=60, namespace="a"))
    next(running)
    memory = lm.memories.of("a")
    accepted(lm, namespace="b")
    assert list(lm.memories._by_namespace) == ["b"]
    assert lm.memories.of("a") is memory
    for _ in running:
        pass
    assert memory.ngrams.answers.num_tokens == 61


def test_an_answer_left_in_the_middle_is_counted_too():
    lm = model()
    stream = iter(lm.stream(PROMPT, max_new_tokens=60, namespace="a"))
    before = lm.memories._num_bytes["a"]
    for _ in range(30):
        next(stream)
    stream.close()
    assert lm.memories._num_bytes["a"] > before + 4096


def test_nobody_waits_for_what_is_loaded(tmp_path, monkeypatch):
    """A history and a corpus that never come."""
    never = threading.Event()
    monkeypatch.setattr(History, "answers", lambda *_, **__: never.wait() and [])

    def no_background(*_: object, **__: object) -> None:
        never.wait()
        raise ForetokenError("No corpus came.")

    monkeypatch.setattr("foretoken.memory.namespaces.general_background", no_background)
    done = threading.Event()

    def work() -> None:
        lm = model(tmp_path / "history.sqlite", "general")
        for namespace in ("a", None, "a"):
            assert accepted(lm, namespace=namespace) >= 0
        done.set()

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(120)
    never.set()


WAITS = """
import sys, threading, foretoken.memory.namespaces as memories, foretoken
never = threading.Event()
memories.History.answers = lambda *_, **__: never.wait()
memories.general_background = lambda *_, **__: never.wait()
memories.EXIT_SECONDS = 0.1
lm = foretoken.load("toy", history=sys.argv[1])
lm.generate("abc", max_new_tokens=3)
print("answered", flush=True)
"""


def test_a_program_ends_whatever_is_loaded(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", WAITS, str(tmp_path / "history.sqlite")],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert (ended.returncode, ended.stdout) == (0, "answered\n") and "Traceback" not in ended.stderr


FORKS = """
import os, threading, time, foretoken, foretoken.memory.namespaces as memories
general = threading.Event()
memories.general_background = lambda *_, **__: general.wait() and None
lm = foretoken.load("toy", history=False)
answer = lambda namespace: lm.generate("abc", max_new_tokens=8, namespace=namespace).tokens
expected = answer("a")
held = threading.Event()
def hold():
    with lm.memories._lock, lm.memories.of("a").ngrams.lock:
        held.set()
        time.sleep(3600)
threading.Thread(target=hold, daemon=True).start()
held.wait()
memories.general_background = lambda *_, **__: (_ for _ in ()).throw(foretoken.ForetokenError("loaded again"))
child = os.fork()
if child == 0:
    assert answer("a") == answer("b") == answer(None) == expected
    lm.memories.wait()
    assert not lm.memories._general
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_answers_whatever_its_parents_threads_held():
    ended = subprocess.run(
        [sys.executable, "-c", FORKS],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ended.stdout == "7\n", ended.stderr


@pytest.mark.parametrize("drafter", ["none", "anpd", "prompt-lookup", "lookahead"])
@pytest.mark.parametrize("kept", [False, True])
def test_an_answer_is_remembered_whatever_drafted_it(tmp_path, drafter, kept):
    lm = model(tmp_path / "history.sqlite" if kept else None)
    unknown = accepted(lm, namespace=None)
    lm.generate(PROMPT, max_new_tokens=60, drafter=drafter, namespace="a")
    assert lm.memories.of("a").ngrams
    lm.memories.wait()
    assert lm.memories.of("a").ngrams.answers.num_tokens == 61
    assert accepted(lm, namespace="a") > unknown + 20


def test_without_a_drafter_that_reads_them_answers_are_only_kept():
    """Nothing is counted, and nothing compiled for it; what waits is bounded."""
    lm = model()
    for _ in range(2 * MAX_WAITING):
        lm.generate(PROMPT, max_new_tokens=2, drafter="none")
    namespace = lm.memories.of("default")
    assert namespace._made is None and namespace.nbytes < OBJECTS_BYTES + 10 * MAX_WAITING
    assert namespace.ngrams.answers.num_tokens == 3 * MAX_WAITING


def test_threads_that_ask_at_once_get_the_same_statistics():
    loaded: list[SharedNgrams] = []
    namespace = Namespace(load=loaded.append)
    start = threading.Barrier(8)
    made: list[SharedNgrams] = []

    def ask() -> None:
        start.wait()
        made.append(namespace.ngrams)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [namespace.ngrams] * 8 and loaded == [namespace.ngrams]
