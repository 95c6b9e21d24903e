"""The drafts of a batch against those of single sequences, and what becomes of the requests' states."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken import Draft, Step
from foretoken.drafters.ngram import CHAIN_FLOOR, NgramMixer
from foretoken.hosts.vllm import states as module
from foretoken.hosts.vllm.states import AWAY, EDGE, MAX_AGE, RowFacts, States
from foretoken.memory.namespace import Namespace
from helpers.vllm_rows import Rows

K = 4
texts = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def step(
    states: States, rows: Rows, new: Mapping[str, Sequence[int]], facts: RowFacts | None = None
) -> list[list[int]]:
    """One step of vLLM, and what is drafted for each row."""
    sampled = rows.commit(new)
    num_new = np.array([len(tokens) for tokens in sampled], np.int32)
    states.follow(rows.texts, rows.lengths[: len(sampled)], num_new, facts)
    states.learn(rows.texts)
    most = np.where(num_new > 0, K, 0).astype(np.int32)
    states.draft(rows.texts, most, CHAIN_FLOOR)
    return [states.tokens[row, :n].tolist() for row, n in enumerate(most)]


def facts_of(rows: Rows, namespaces: dict[str, Namespace], limits: dict[str, int] | None = None) -> RowFacts:
    return RowFacts(
        rows.names, [namespaces[name] for name in rows.names], [(limits or {}).get(n, K) for n in rows.names]
    )


class Alone:
    """The same requests, each with a drafter of its own, as ``decode`` would ask it; they share one memory."""

    def __init__(self) -> None:
        self.namespace = Namespace()
        self.drafters: dict[str, NgramMixer] = {}

    def step(
        self, names: Sequence[str], prompts: Mapping[str, list[int]], new: Mapping[str, Sequence[int]]
    ) -> list[list[int]]:
        for name in names:
            if name not in self.drafters:
                self.drafters[name] = NgramMixer(self.namespace.ngrams, trees=False)
                self.drafters[name].begin(prompts[name])
            self.drafters[name].observe(Step(Draft(), tuple(new[name])))
        return [list(self.drafters[name].propose([], K).tokens) for name in names]


@settings(deadline=None, max_examples=60)
@given(st.lists(texts, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_drafts_are_those_of_single_sequences_wherever_rows_move(prompts: list[list[int]], rng: random.Random):
    rows, states, alone = Rows(), States(8, K, Namespace()), Alone()
    named = {str(i): prompt for i, prompt in enumerate(prompts)}
    waiting = list(named)
    for _ in range(6):
        if waiting:
            rows.add(waiting[0], named[waiting.pop(0)])
        if len(rows.names) > 1 and rng.random() < 0.5:
            rows.swap(*rng.sample(range(len(rows.names)), 2))
        new = {name: [rng.randrange(4) for _ in range(rng.randint(1, 3))] for name in rows.names}
        assert step(states, rows, new) == alone.step(rows.names, named, new)


def test_a_long_prompt_is_counted_in_pieces_and_then_drafted_for(monkeypatch):
    monkeypatch.setattr(module, "COUNTED", 40)
    rows, states, alone = Rows(), States(8, K, Namespace()), Alone()
    prompt = [token % 23 for token in range(100)]
    rows.add("a", prompt)
    assert step(states, rows, {}) == [[]]  # a part of the prompt is read
    assert step(states, rows, {"a": [8]}) == [[]]  # 80 of the 100 are counted
    alone.step(["a"], {"a": prompt}, {"a": [8]})
    assert step(states, rows, {"a": [9]}) == alone.step(["a"], {}, {"a": [9]}) == [[10, 11, 12, 13]]


def test_what_vllm_does_not_tell_of_is_counted_and_not_learned_from():
    """Near the end of the context vLLM asks no drafter, for any of the requests."""
    rows, states = Rows(), States(8, K, Namespace())
    rows.add("a", [1, 2, 3, 4, 5] * 3)
    step(states, rows, {"a": [1]})
    rows.commit({"a": [2]})  # not told
    assert step(states, rows, {"a": [3]}) == [[4, 5, 1, 2]]
    assert len(states) == 1


def test_an_answer_is_remembered_once_its_request_is_away_and_only_then():
    rows, states = Rows(), States(8, K, Namespace())
    answer = [11, 12, 13, 14, 15, 16]
    rows.add("a", [1, 2])
    for token in answer:
        step(states, rows, {"a": [token]})
    rows.add("b", [3, 11])
    assert step(states, rows, {"a": [1], "b": [12]})[1] == []
    rows.remove("a")
    for _ in range(AWAY):
        step(states, rows, {"b": [5]})
    rows.add("c", [4, 11])
    assert step(states, rows, {"b": [5], "c": [12]})[1] == [13, 14, 15, 16]


def test_a_preempted_request_finds_its_state_again(monkeypatch):
    begun = []
    monkeypatch.setattr(States, "_begin", lambda *args, begin=States._begin: (begun.append(args[2]), begin(*args)))
    rows, states = Rows(), States(8, K, Namespace())
    for name in "ab":
        rows.add(name, [ord(name)] * 3)
    step(states, rows, {"a": [1], "b": [2]})
    text = rows.remove("a")
    for _ in range(MAX_AGE - 2):
        step(states, rows, {"b": [2]})
    rows.add("a", text)
    step(states, rows, {"b": [2]})  # its text is read again
    step(states, rows, {"a": [5], "b": [2]})
    assert len(begun) == 2 and len(states) == 2


def test_the_next_turn_of_a_conversation_goes_on_with_what_was_counted():
    rows, states = Rows(), States(8, K, Namespace())
    rows.add("a", list(range(100, 140)))
    step(states, rows, {"a": [1]})
    text = rows.remove("a")
    rows.add("b", [*text, 2, 3])
    assert step(states, rows, {"b": [100]})[0] == [101, 102, 103, 104]
    assert len(states) == 1


def test_nothing_is_left_of_requests_that_ended():
    rows, states = Rows(), States(8, K, Namespace())
    rng = random.Random(0)
    for number in range(300):
        name = str(number)
        rows.add(name, [rng.randrange(50) for _ in range(30)])
        step(states, rows, {name: [1] for name in rows.names})
        if len(rows.names) > 4:
            rows.remove(rng.choice(rows.names))
    assert len(states) <= 16  # the slots that there are: old ones make room
    keep = rows.names[0]
    for name in rows.names[1:]:
        rows.remove(name)
    for _ in range(MAX_AGE):
        step(states, rows, {keep: [1]})
    assert len(states) == 1


def test_with_names_states_end_when_requests_do():
    rows, states, space = Rows(), States(8, K, Namespace()), Namespace()
    for name in "abc":
        rows.add(name, [1, 2, 3])  # the same text: names alone tell them apart
    namespaces = dict.fromkeys("abc", space)
    step(states, rows, {name: [4] for name in "abc"}, facts_of(rows, namespaces))
    assert len(states) == 3
    states.end(["a", "b", "unknown"])
    assert len(states) == 1
    assert len(states._memories) == 1
    states.end(["c"])
    assert (len(states), states.nbytes, len(states._memories)) == (0, 0, 0)


def test_namespaces_do_not_draft_from_each_other():
    rows, states = Rows(), States(8, K, Namespace())
    spaces = {"a": Namespace("one"), "b": Namespace("two"), "c": Namespace("one")}
    spaces["c"] = spaces["a"]
    rows.add("a", [1, 2])
    for token in range(20, 30):
        step(states, rows, {"a": [token]}, facts_of(rows, spaces))
    rows.remove("a")
    states.end(["a"])
    for name in "bc":
        rows.add(name, [3, 20])
    assert step(states, rows, {"b": [21], "c": [21]}, facts_of(rows, spaces)) == [[], [22, 23, 24, 25]]


def test_a_row_of_limit_0_leaves_nothing_behind():
    rows, states, space = Rows(), States(8, K, Namespace()), Namespace()
    rows.add("a", [1, 2, 1])
    assert step(states, rows, {"a": [2]}, facts_of(rows, {"a": space}, {"a": 0})) == [[]]
    assert len(states) == 0


@pytest.mark.parametrize("length", [1, EDGE - 1, EDGE, EDGE + 1, 3 * EDGE])
def test_texts_that_differ_at_an_end_have_states_of_their_own(length):
    rows, states = Rows(), States(8, K, Namespace())
    text = [5] * length
    for name, prompt in (("a", text), ("b", [6, *text[1:]]), ("c", [*text[:-1], 6])):
        rows.add(name, prompt)
        step(states, rows, {name: [1] for name in rows.names})
    assert len(set(states.slots.tolist())) == 3
