"""ANPD against the contract of its paper, and against a second implementation that only counts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretoken import DecodeStats, FixedBudget, ForetokenError, decode
from foretoken.drafters import AdaptiveNgram, PromptLookupDrafter
from foretoken.drafters.anpd import NgramTables
from foretoken.engines.replay import ReplayTarget
from foretoken.engines.toy import ToyTarget

texts = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def counted_draft(text: list[int], max_order: int, max_tokens: int) -> list[int]:
    """The paper's draft by counting the whole text anew for every token: slow, and plainly right."""
    context, draft = list(text), []
    while len(draft) < max_tokens:
        for n in range(max_order, 1, -1):
            gram = context[len(context) - n + 1 :]
            after = [i for i in range(n - 1, len(text)) if text[i - n + 1 : i] == gram]
            if len(gram) == n - 1 and after:
                counts, recent = Counter(text[i] for i in after), {text[i]: i for i in after}
                draft.append(max(counts, key=lambda token: (counts[token], recent[token])))
                context.append(draft[-1])
                break
        else:
            break
    return draft


@given(texts, st.integers(2, 6), st.integers(1, 10))
def test_drafts_are_those_of_counting(text, max_order, max_tokens):
    drafter = AdaptiveNgram(max_order)
    drafter.begin(text)
    assert list(drafter.propose(text, max_tokens).tokens) == counted_draft(text, max_order, max_tokens)


@given(st.integers(0, 999), st.integers(2, 5))
def test_tables_equal_tables_rebuilt_from_the_committed_tokens(seed, max_order):
    """The prompt is counted once, every committed token is counted, and no rejected guess is."""
    drafter = AdaptiveNgram(max_order)
    context = [1, 2, 1]
    for step in decode(ToyTarget(model_seed=seed), drafter, context, max_new_tokens=40):
        context = [*context, *step.tokens]
        rebuilt = NgramTables(max_order)
        rebuilt.extend(context)
        for level, expected in zip(drafter.tables.levels, rebuilt.levels, strict=True):
            assert {gram: (s.best, s.counts) for gram, s in level.items()} == {
                gram: (s.best, s.counts) for gram, s in expected.items()
            }


def test_token_one_is_a_token_like_any_other():
    """In the published code "1" marks a miss."""
    drafter = AdaptiveNgram()
    drafter.begin([8, 1, 1, 9, 8])
    assert drafter.propose([8, 1, 1, 9, 8], 3).tokens == (1, 1, 9)


def test_the_prompt_is_counted_once_and_does_not_wrap_around():
    tables = NgramTables(3)
    tables.extend([4, 5, 6])
    assert {gram: s.counts for level in tables.levels for gram, s in level.items()} == {
        (4,): {5: 1},
        (5,): {6: 1},
        (4, 5): {6: 1},
    }


def test_the_most_recent_of_equals_is_drafted():
    drafter = AdaptiveNgram()
    drafter.begin([7, 1, 7, 2, 7])
    assert drafter.propose([7, 1, 7, 2, 7], 1).tokens == (2,)
    drafter.begin([7, 1, 7, 1, 7, 2, 7])
    assert drafter.propose([7, 1, 7, 1, 7, 2, 7], 1).tokens == (1,)


def test_replay_gives_the_acceptance_of_a_second_implementation():
    text = [(i * i + i // 7) % 11 for i in range(300)]
    prompt, record = text[:60], text[60:]
    stats = DecodeStats()
    for step in decode(
        ReplayTarget(record), AdaptiveNgram(), prompt, max_new_tokens=len(record), budget=FixedBudget(10)
    ):
        stats.add(step)
    steps, done = 0, 1  # the prefill gives the first token
    while done < len(record):
        draft = counted_draft(prompt + record[:done], 5, min(10, len(record) - done - 1))
        matched = next((i for i, t in enumerate(draft) if t != record[done + i]), len(draft))
        steps, done = steps + 1, done + matched + 1
    assert stats.steps == steps and stats.accepted == len(record) - 1 - steps


@given(texts, st.integers(1, 4), st.integers(1, 8))
def test_prompt_lookup_copies_after_the_longest_latest_match(text, max_ngram, max_tokens):
    drafter = PromptLookupDrafter(max_ngram)
    drafter.begin(text)
    expected: list[int] = []
    for n in range(min(max_ngram, len(text)), 0, -1):
        starts = [i for i in range(n, len(text)) if text[i - n : i] == text[len(text) - n :]]
        if starts:
            expected = text[starts[-1] :][:max_tokens]
            break
    assert list(drafter.propose(text, max_tokens).tokens) == expected


def test_orders_below_the_least_are_refused():
    with pytest.raises(ForetokenError, match="max_order is 1"):
        AdaptiveNgram(1)
    with pytest.raises(ForetokenError, match="max_ngram is 0"):
        PromptLookupDrafter(0)
