"""The class that vLLM makes, asked as vLLM asks it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from foretoken.core.errors import ForetokenError
from foretoken.hosts.vllm import Drafter
from helpers.vllm_rows import MAX_LENGTH, DraftsAll, Rows, config


@pytest.fixture
def drafter() -> Drafter:
    drafter = Drafter(config())
    drafter.budget = DraftsAll()
    return drafter


def propose(drafter: Drafter, rows: Rows, **new: list[int]) -> list[list[int]]:
    return drafter.propose(rows.commit(new), rows.lengths, rows.texts)


def test_drafts_follow_the_text_and_are_no_longer_than_was_said(drafter):
    rows = Rows()
    rows.add("a", [1, 2, 3, 4, 5, 6, 1])
    rows.add("b", [7, 8, 9])
    assert propose(drafter, rows, a=[2], b=[1]) == [[3, 4, 5, 6], []]


def test_drafts_end_before_the_context_does(drafter):
    rows = Rows()
    rows.add("a", [token % 5 for token in range(MAX_LENGTH - 4)])
    drafts = [propose(drafter, rows, a=[(MAX_LENGTH - 4 + i) % 5])[0] for i in range(4)]
    assert [len(draft) for draft in drafts] == [2, 1, 0, 0]


def test_only_steps_that_decode_and_nothing_else_are_learned_from(drafter):
    rows = Rows()
    rows.add("a", [1, 2, 3, 1, 2])
    propose(drafter, rows)  # a part of its prompt
    propose(drafter, rows, a=[3])  # its forward read the rest
    assert drafter.budget.told == []
    propose(drafter, rows, a=[1, 2, 3])
    assert drafter.budget.told == [(1, 4, 2)]
    rows.add("b", [5, 6])
    propose(drafter, rows, a=[1], b=[5])  # its forward read the prompt of b
    assert len(drafter.budget.told) == 1
    propose(drafter, rows, a=[1], b=[5])
    assert len(drafter.budget.told) == 2


def test_what_was_drafted_for_a_request_that_has_ended_is_not_counted(drafter):
    rows = Rows()
    for name in "ab":
        rows.add(name, [1, 2, 3, 4, 5, 1])
    propose(drafter, rows, a=[2], b=[2])
    propose(drafter, rows, a=[3], b=[3])
    rows.remove("b")
    propose(drafter, rows, a=[4])
    assert drafter.budget.told == [(2, 8, 0), (1, 4, 0)]


def test_nothing_is_drafted_where_the_budget_says_no(drafter):
    drafter.budget.allows = lambda num_requests: False
    rows = Rows()
    rows.add("a", [1, 2, 3, 4, 5, 6, 1])
    assert propose(drafter, rows, a=[2]) == [[]]


class Resting(DraftsAll):
    """Does not draft, and rests for three steps; then drafts."""

    def __init__(self) -> None:
        super().__init__()
        self.num_asked = 0

    def allows(self, num_requests: int) -> bool:
        self.num_asked += 1
        return self.num_asked > 1

    def rest(self, num_requests: int, is_asked: bool) -> int:
        return 3

    def observe(self, num_requests, num_drafted, seconds, promised, num_kept) -> None:
        self.told.append((num_requests, num_drafted, num_kept))


def test_what_passes_while_it_rests_is_learned_later(drafter):
    rows, text = Rows(), [token % 7 for token in range(60)]
    rows.add("a", text[:20])
    propose(drafter, rows, a=text[20:21])  # its forward read the prompt
    drafter.budget = Resting()
    for length in range(21, 25):
        assert propose(drafter, rows, a=text[length : length + 1]) == [[]]
    assert drafter.budget.num_asked == 1
    assert propose(drafter, rows, a=text[25:26]) == [text[26:30]]
    assert drafter.budget.told == [(1, 4, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0)]


def test_a_rest_ends_with_a_new_request(drafter):
    rows = Rows()
    rows.add("a", [1, 2, 3, 1, 2])
    propose(drafter, rows, a=[3])
    drafter.budget = Resting()
    propose(drafter, rows, a=[1])
    rows.add("b", [4, 5, 6, 4, 5])
    assert propose(drafter, rows, a=[2], b=[6]) == [[3, 1, 2, 3], [4, 5, 6, 4]]


def test_the_text_of_a_whole_answer_is_that_of_no_drafts_whatever_the_clock_says():
    """With the budget that learns from the clock: what vLLM would accept is what its own tokens are."""
    drafter = Drafter(config())
    text = [token % 7 for token in range(MAX_LENGTH)]
    rows = Rows()
    rows.add("a", text[:20])
    new, said = [text[20]], 21
    while said < MAX_LENGTH - 1:
        (draft,) = propose(drafter, rows, a=new)
        right = next((i for i, token in enumerate(draft) if token != text[said + i]), len(draft))
        new = text[said : said + right + 1]
        said += len(new)
    assert rows.texts[0, : rows.lengths[0]].tolist() == text[: rows.lengths[0]]


@pytest.mark.parametrize("most", [0, -1, 129, MAX_LENGTH, 2.5, None, True])
def test_a_wrong_number_of_tokens_is_refused(most):
    with pytest.raises(ForetokenError, match=r"num_speculative_tokens is .*: give a whole number from 1 to 128"):
        Drafter(config(most))


def test_a_short_context_takes_fewer_tokens():
    with pytest.raises(ForetokenError, match="from 1 to 15"):
        Drafter(config(16, max_length=16))


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "1.0", "dev"])
def test_a_vllm_that_was_not_tested_is_refused(version, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__=version))
    with pytest.raises(ForetokenError, match=f"This is vLLM {version}, and Foretoken was tested with 0.32 only"):
        Drafter(config())


def test_vllm_goes_on_asking_near_the_end_of_the_context():
    given = config(max_draft=4)
    Drafter(given)
    assert given.speculative_config.draft_model_config.max_model_len == MAX_LENGTH + 4
    assert given.model_config.max_model_len == MAX_LENGTH
