"""Token statistics against dictionaries that count the whole text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken.ngrams import kernels
from foretoken.ngrams.arrays import ORDERS, WINDOW
from foretoken.ngrams.store import LEAST_BYTES, TokenStore

walk = numba.njit(kernels.walk)

small = st.integers(0, 3)
texts = st.lists(st.lists(small, max_size=40), max_size=4)
extremes = st.sampled_from([-(2**31), -7, -1, 0, 2**20 - 1, 2**20, 2**31 - 1])


class Counted:
    """What followed every context of 0 to 8 tokens, by counting."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        self.seen: dict[tuple[int, ...], int] = {}  # when a sequence occurred last
        clock = 0
        for sequence in sequences:
            for i, token in enumerate(sequence):
                clock += 1
                for n in range(min(ORDERS, i) + 1):
                    context = tuple(sequence[i - n : i])
                    self.counts[context][token] += 1
                    self.seen[*context, token] = clock

    def successors(self, context: tuple[int, ...]) -> list[tuple[int, int]]:
        """(token, count), the one seen last first."""
        counts = self.counts.get(context, Counter())
        return [(token, counts[token]) for token in sorted(counts, key=lambda token: -self.seen[*context, token])]


def contexts_after(store: TokenStore, text: Sequence[int]) -> list[int]:
    """The store's contexts that end with the last tokens of a text, walked from nothing."""
    contexts = np.zeros(ORDERS + 1, np.int32)
    contexts[0] = 1
    for token in text:
        walk(store.trie, contexts, token, contexts)
    return contexts.tolist()


def successors(store: TokenStore, context: Sequence[int]) -> list[tuple[int, int]]:
    trie, node = store.trie, contexts_after(store, context)[len(context)]
    if node < 0:
        following = trie.tokens[-node] if -node < store.num_tokens else -1
        return [(int(following), 1)] if following >= 0 else []
    found, child = [], int(trie.nodes[node]["first"]) if node else 0
    while child:
        found.append((int(trie.nodes[child]["token"]), int(trie.nodes[child]["count"])))
        child = int(trie.nodes[child]["next"])
    assert sum(count for _, count in found) == trie.nodes[node]["total"] or node == 0
    return found


def sequences_of(store: TokenStore) -> list[list[int]]:
    """The tokens that a store holds."""
    sequences: list[list[int]] = [[]]
    for token in store.trie.tokens[: store.num_tokens].tolist():
        if token < 0:
            sequences.append([])
        else:
            sequences[-1].append(token)
    return sequences


def assert_counts_are_exact(store: TokenStore) -> None:
    counted = Counted(sequences_of(store))
    for context in counted.counts:
        assert successors(store, context) == counted.successors(context)


@settings(deadline=None)  # the first call compiles
@given(st.data(), texts, st.integers(0, 20))
def test_counts_are_those_of_dictionaries_however_the_tokens_come(data, sequences, num_tokens):
    store = TokenStore(num_tokens)
    for sequence in sequences:
        done = 0
        while done < len(sequence):
            size = data.draw(st.integers(1, len(sequence) - done))
            if data.draw(st.booleans()):
                store.make_room(data.draw(st.integers(0, 50)))
            store.extend(sequence[done : done + size])
            done += size
        store.end_sequence()
    assert sequences_of(store) == [*sequences, []]
    assert_counts_are_exact(store)


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 40, 2**31 - 1])
def test_counts_stay_exact_while_a_store_grows(vocabulary):
    rng = np.random.default_rng(vocabulary)
    text = rng.integers(0, vocabulary, 700)
    text = np.concatenate([text, text[100:500], [-1], text[50:90], text])  # also verbatim, where most nodes are made
    store = TokenStore(0)
    for start in range(0, len(text), 7):
        store.extend(text[start : start + 7])
    assert store.trie.tokens.size > 1000
    assert_counts_are_exact(store)


@settings(deadline=None)
@given(texts, st.lists(small, max_size=WINDOW))
def test_exactly_the_contexts_that_occur_are_found(sequences, text):
    store = TokenStore()
    for sequence in sequences:
        store.extend(sequence)
        store.end_sequence()
    occur = {tuple(s[i : i + n]) for s in sequences for n in range(1, ORDERS + 1) for i in range(len(s) - n + 1)}
    expected = [n <= len(text) and tuple(text[len(text) - n :]) in occur for n in range(1, ORDERS + 1)]
    window = np.full(WINDOW, -1, np.int32)
    window[WINDOW - len(text) :] = text
    contexts = np.empty(ORDERS + 1, np.int32)
    kernels.follow(store.trie, window, contexts)
    assert [context != 0 for context in contexts[1:]] == expected
    assert contexts.tolist() == contexts_after(store, text)
    for n in range(1, ORDERS + 1):
        if contexts[n] > 0:  # a node is of the right sequence
            spelled, node = [], int(contexts[n])
            while node != 1:
                spelled.append(int(store.trie.nodes[node]["token"]))
                node = int(store.trie.nodes[node]["parent"])
            assert spelled[::-1] == text[len(text) - n :]
        elif contexts[n] < 0:
            end = -int(contexts[n])
            assert store.trie.tokens[end - n : end].tolist() == text[len(text) - n :]


def test_the_most_recent_successor_comes_first():
    store = TokenStore()
    store.extend([7, 1, 7, 2, 7, 3, 7, 1])
    assert successors(store, [7]) == [(1, 2), (3, 1), (2, 1)]


def test_a_wrong_count_is_noticed():
    """The tests above must be able to fail."""
    store = TokenStore()
    store.extend([7, 1, 7, 2])
    store.trie.nodes["count"][store.trie.nodes["token"] == 1] += 1
    with pytest.raises(AssertionError):
        assert_counts_are_exact(store)


@settings(deadline=None)
@given(st.lists(extremes, max_size=60), st.integers(0, 60))
def test_any_number_is_a_token_or_separates(numbers, split):
    store = TokenStore()
    store.extend(numbers[:split])
    store.extend(np.array(numbers[split:], np.int64)[::1])
    assert store.trie.tokens[: store.num_tokens].tolist() == [max(-1, number) for number in numbers]
    assert_counts_are_exact(store)


def test_a_number_that_no_token_can_be_is_refused_and_leaves_no_trace():
    store = TokenStore()
    with pytest.raises(OverflowError):
        store.extend([1, 2**31])
    assert store.num_tokens == 0


@pytest.mark.parametrize("max_bytes", [0, LEAST_BYTES, 20_000, 100_000])
@pytest.mark.parametrize("vocabulary", [1, 5, 2**31 - 1])
def test_a_full_store_forgets_the_older_half_and_is_then_as_if_built_from_the_newer(max_bytes, vocabulary):
    text = np.random.default_rng(1).integers(0, vocabulary, 3000)
    text = np.concatenate([text[:2000], text[:1000], text[:1500]])
    store = TokenStore(max_bytes=max_bytes)
    halvings = 0
    for i, token in enumerate(text):
        before = store.num_tokens
        store.extend([token])
        held = store.num_tokens
        while held != before + 1:  # more than once where the newer half is as rich as the whole
            halvings += 1
            before -= before // 2
            assert held <= before + 1
        assert store.trie.tokens[:held].tolist() == text[i + 1 - held : i + 1].tolist()
        assert store.nbytes <= max(max_bytes, LEAST_BYTES)
    assert halvings or (vocabulary == 1 and max_bytes == 100_000)
    rebuilt = TokenStore()
    rebuilt.extend(text[-store.num_tokens :])
    assert rebuilt.trie.sizes.tolist() == store.trie.sizes.tolist()
    assert_counts_are_exact(store)


@pytest.mark.parametrize("max_bytes", [0, 50_000, 2_000_000])
def test_one_huge_extend_ends_within_the_bytes(max_bytes):
    text = np.random.default_rng(0).integers(0, 300, 100_000)
    store = TokenStore(len(text), max_bytes)
    assert store.nbytes <= max(max_bytes, LEAST_BYTES)
    store.extend(text)
    assert store.nbytes <= max(max_bytes, LEAST_BYTES)
    assert store.trie.tokens[: store.num_tokens].tolist() == text[-store.num_tokens :].tolist()
    assert store.num_tokens * 400 > max_bytes  # it keeps about as much as fits


def test_growth_is_amortized(monkeypatch):
    moved = []
    grow = TokenStore._grow
    monkeypatch.setattr(TokenStore, "_grow", lambda self, *room: (moved.append(self.num_tokens), grow(self, *room)))
    text = np.random.default_rng(0).integers(0, 1000, 15_000)
    store = TokenStore(0)
    for start in range(0, len(text), 2):
        store.extend(text[start : start + 2])
    store.extend(text)  # verbatim: several nodes for each token
    assert sum(moved) < 10 * store.num_tokens


@pytest.mark.parametrize("num_tokens", [1000, 8000, 128_000])
def test_bytes_per_token(num_tokens):
    """Of text like a language's, and of text that comes twice, which makes the most nodes."""
    words = (np.random.default_rng(0).zipf(1.3, num_tokens) % 50_000).astype(np.int32)
    for text in (words, np.tile(words[: num_tokens // 2], 2)):
        store = TokenStore(num_tokens + 512)
        store.extend(text)
        assert store.nbytes / num_tokens < 250


def test_one_token_a_hundred_thousand_times():
    store = TokenStore()
    store.extend(np.full(100_000, 5))
    assert store.trie.sizes.tolist() == [100_000, 2 + ORDERS + 1]
    assert successors(store, [5] * ORDERS) == [(5, 100_000 - ORDERS)]
