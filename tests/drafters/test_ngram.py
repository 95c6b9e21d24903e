"""The n-gram core against its second implementation, and against what it promises."""

from __future__ import annotations

import itertools
import math
import os
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from foretoken import DecodeStats, Draft, FixedBudget, Step, decode
from foretoken.core.contracts import Top
from foretoken.drafters.ngram import LEAST_FLOOR, TEXT_WIDTH, TREE_FLOOR, NgramMixer
from foretoken.engines.replay import ReplayTarget
from foretoken.memory.corpus import build
from foretoken.ngrams import arrays, kernels
from foretoken.ngrams.arrays import BACKGROUND, NAMED_CONTEXTS, WINDOW
from foretoken.ngrams.background import Background, context_hashes
from foretoken.ngrams.shared import (
    SharedNgrams,
    rows_now,
    sets_of,
    table_of,
    untrained_weights,
    with_rows_of_its_own,
)
from foretoken.ngrams.store import LEAST_BYTES
from helpers.drafting import verified
from helpers.mixing import Plain, strength

property_test = settings(deadline=None)  # the first call compiles
small = st.integers(0, 3)
texts = st.lists(small, max_size=50)
sizes = st.integers(1, 24)


@st.composite
def edited_texts(draw) -> list[int]:
    """A text that begins again, one of its last tokens changed."""
    text = draw(st.lists(small, min_size=22, max_size=25))
    again = text[draw(st.integers(0, 5)) : draw(st.integers(12, 20))]
    again[-draw(st.integers(1, 3))] = draw(small)
    return [*text, *again]


def step_of(tokens: Sequence[int], draft: Draft | None = None, last: bool = False) -> Step:
    return Step(draft or Draft(), tuple(tokens), finish_reason="stop" if last else None)


def drafter_of(prompt: Sequence[int], memory: SharedNgrams | None = None, **options) -> NgramMixer:
    drafter = NgramMixer(memory, **options)
    drafter.begin(prompt)
    return drafter


def path_prob(draft: Draft, node: int) -> float:
    return math.prod(draft.probs[ancestor] for ancestor in draft.ancestors(node))


def assert_valid(draft: Draft, max_tokens: int, width: int, floor: float) -> None:
    assert len(draft) <= max_tokens and len(draft.probs) == len(draft)
    assert all(0 <= prob <= 1 for prob in draft.probs) and all(0 <= token < 2**31 for token in draft.tokens)
    paths = [path_prob(draft, node) for node in range(len(draft))]
    least = 1e-37  # paths below are all the same to 32 bits
    assert all(after <= before * (1 + 1e-5) + least for before, after in itertools.pairwise(paths))
    assert all(path >= floor * (1 - 1e-5) for path in paths)
    for node in range(-1, len(draft)):
        children = draft.children(node)
        assert len(children) <= width
        assert len({draft.tokens[child] for child in children}) == len(children)
        assert sum(draft.probs[child] for child in children) <= 1 + 1e-5


@pytest.fixture(scope="module")
def background(tmp_path_factory) -> Background:
    folder = tmp_path_factory.mktemp("background") / "store"
    chance = random.Random(0)
    build([[chance.randrange(4) for _ in range(60)] for _ in range(8)], None, "0123456789abcdef", folder)
    return Background.open(folder)


@property_test
@given(texts, st.lists(texts, max_size=2), st.booleans(), st.sampled_from([0.0, 0.01, 0.2]), sizes)
def test_drafts_are_trees_in_order_of_their_paths(prompt, answers, trees, floor, max_tokens):
    memory = SharedNgrams()
    for answer in answers:
        memory.add(answer)
    draft = drafter_of(prompt, memory, trees=trees, floor=floor).propose(prompt, max_tokens)
    assert_valid(draft, max_tokens, TEXT_WIDTH if trees else 1, floor)
    assert trees or draft.is_chain
    assert set(draft.tokens) <= set(prompt).union(*answers)


@settings(property_test, max_examples=40)  # the second implementation is slow
@given(texts | edited_texts(), st.lists(texts, max_size=2), st.lists(small, max_size=6), st.booleans(), sizes)
def test_probabilities_are_those_of_the_second_implementation(background, prompt, answers, new, mapped, max_tokens):
    memory = SharedNgrams(background if mapped else None)
    memory.weights = with_rows_of_its_own(rows_now(memory.weights))
    seen = table_of(memory.weights.own)[:, arrays.SEEN]
    seen[:] = np.minimum(seen, 20)  # so that one token moves much
    drafter = drafter_of(prompt, memory, floor=0.001, rate=0.02)
    plain = Plain(memory, answers, prompt)
    for answer in answers:
        memory.add(answer)
    if mapped:
        plain.background = background.successors
    assert_pairs_have_places_of_their_own(drafter)
    if new:
        drafter.observe(step_of(new))
    for token in new:
        plain.commit(token, 0.02)
    np.testing.assert_allclose(sets_of(rows_now(memory.weights)), plain.weight, atol=1e-4)
    np.testing.assert_allclose(table_of(rows_now(memory.weights)), plain.table, rtol=1e-4, atol=1e-4)
    draft = drafter.propose(prompt, max_tokens)
    drafted = {(tuple(draft.path(parent)), token) for parent, token in zip(draft.parents, draft.tokens, strict=True)}
    least = path_prob(draft, len(draft) - 1) if len(draft) == max_tokens else 0.001
    for node in range(-1, len(draft)):
        path = draft.path(node)
        probs = plain.probs(path)
        for child in draft.children(node):
            assert draft.probs[child] == pytest.approx(probs[draft.tokens[child]], rel=1e-3, abs=1e-6)
        passed_over = [prob for token, prob in probs.items() if (tuple(path), token) not in drafted]
        if len(draft.children(node)) < TEXT_WIDTH:
            assert all(prob * (path_prob(draft, node) if node >= 0 else 1) <= least * 1.001 for prob in passed_over)


class Named:
    """Scores that name given successors: of row i, tokens and probabilities, the likeliest first."""

    def __init__(self, rows: Sequence[Sequence[tuple[int, float]]]) -> None:
        self.rows = rows

    def top(self, rows: Sequence[int], k: int) -> Top:
        chosen = [self.rows[row][:k] for row in rows]
        return Top([[token for token, _ in row] for row in chosen], [[prob for _, prob in row] for row in chosen])


@st.composite
def named_rows(draw, num: int) -> list[list[tuple[int, float]]]:
    """What a target over four tokens might name after each of ``num`` rows."""
    orders = st.permutations(range(4))
    probs = st.lists(st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 0.9, 0.99]), min_size=4, max_size=4)
    return [list(zip(draw(orders), sorted(draw(probs), reverse=True), strict=True)) for _ in range(num)]


@property_test
@given(st.data(), texts.filter(len), st.lists(small, min_size=1, max_size=4), st.integers(0, 3))
def test_what_the_target_named_votes_as_the_second_implementation_says(data, prompt, new, num_wrong):
    memory = SharedNgrams()
    memory.weights = with_rows_of_its_own(rows_now(memory.weights))
    sets = sets_of(memory.weights.own)
    sets += np.random.default_rng(0).normal(0, 0.05, sets.shape).astype(np.float32)
    drafter, plain = drafter_of(prompt, memory, floor=0.001, rate=0.02, recycle=True), Plain(memory, [], prompt)
    right = len(new) - 1
    # The right tokens in a chain, wrong ones anywhere beside and below them, the last of them lookahead rows.
    tokens = [*new[:-1], *(data.draw(st.integers(0, 5)) for _ in range(num_wrong))]
    parents = [*range(-1, right - 1), *(data.draw(st.integers(-1, right + i - 1)) for i in range(num_wrong))]
    draft = Draft(tuple(tokens), tuple(parents), num_lookahead=num_wrong)
    rows = data.draw(named_rows(1 + len(draft)))
    drafter.observe(verified(new, draft, Named(rows)))
    paths = [(), *(draft.path(node) for node in range(len(draft)))]
    for row in [*range(right + 1, len(rows)), *range(right + 1)]:
        plain.name(paths[row], rows[row], row <= right)
    named, plain.named = plain.named, {}  # nothing of it was known when these tokens were learned from
    for token in new:
        plain.commit(token, 0.02)
    plain.named = named
    np.testing.assert_allclose(sets_of(rows_now(memory.weights)), plain.weight, atol=1e-4)
    places = {context_hashes(context, 4)[-1] >> 40 & (NAMED_CONTEXTS - 1) for context in named}
    assume(len(places) == len(named))  # the second implementation does not know that one may take another's place
    probs = plain.probs()
    draft = drafter.propose([], 24)
    for child in draft.children(-1):
        assert draft.probs[child] == pytest.approx(probs[draft.tokens[child]], rel=1e-3, abs=1e-6)
    assert draft.children(-1) or max(probs.values(), default=0) < 0.0011


def test_what_was_named_in_one_answer_is_known_in_the_next():
    memory = SharedNgrams()
    first = drafter_of([1, 2, 3], memory, recycle=True)
    first.observe(verified([7], scores=Named([[(7, 0.9), (8, 0.1)]]), finish_reason="stop"))
    second = drafter_of([3], memory, recycle=True, floor=0.0)
    assert 8 in second.propose([3], 8).tokens, "that 8 was likely after 3 is in no text"
    assert 8 not in drafter_of([3], memory, floor=0.0).propose([3], 8).tokens


def test_while_the_budget_pauses_no_scores_are_asked():
    class Silent:
        def top(self, rows: Sequence[int], k: int) -> Top:
            raise AssertionError

    drafter = drafter_of([1, 2, 3], recycle=True)
    drafter.observe(verified([7], scores=Named([[(7, 0.9)]])))
    drafter.observe(verified([7], scores=Silent()))
    drafter.propose([], 1)
    with pytest.raises(AssertionError):  # the test can fail
        drafter.observe(verified([7], scores=Silent()))


def test_the_floor_is_lowered_to_what_a_row_costs():
    prices = iter([None, 1.0, 0.01, 0.0, 0.02])
    drafter = NgramMixer(price=lambda: next(prices))
    floors = []
    for _ in range(5):
        drafter.begin([1, 2])
        floors.append(drafter.floor)
    assert floors == [TREE_FLOOR, TREE_FLOOR, 0.01, LEAST_FLOOR, 0.02]
    assert drafter_of([1], floor=0.001).floor == 0.001


def assert_pairs_have_places_of_their_own(drafter: NgramMixer) -> None:
    """In the table of pairs a later one may take an earlier one's place; the second implementation's does not."""
    size = drafter._local.trie.pairs.size
    place = numba.njit(kernels.place)
    assert len({place(a, b, size) for a in range(4) for b in range(4)}) == 16


@property_test
@given(st.lists(st.integers(0, 4), max_size=12))
def test_compiled_background_votes_are_those_of_the_plain_reader(background, context):
    window = np.full(WINDOW, -1, np.int32)
    window[WINDOW - len(context) :] = context
    votes = arrays.room_for_votes()
    num = kernels.frozen_votes(SharedNgrams(background).frozen, window, votes, 0)
    found = {
        (int(token), int(key))
        for (token, num_votes, _), keys in zip(votes.candidates[:num].tolist(), votes.keys, strict=False)
        for key in keys[:num_votes]
    }
    expected, longest = set(), 0
    for order, rows in enumerate(background.successors(context), start=1):
        if not rows:
            break
        longest = order
        for token, count, other in rows:
            steps = [kernels.few(round(2 ** ((log - 1) / 4))) if log else 0 for log in (count, other)]
            expected.add((token, strength(BACKGROUND, order, *steps, False)[1]))
    assert found == expected and votes.longest[BACKGROUND] == longest


@property_test
@given(texts, small, st.integers(0, 30))
def test_what_comes_up_becomes_likelier(prompt, token, seed):
    prompt = [*prompt, token, 1, token, 1]
    before = drafter_of(prompt, SharedNgrams())
    after = drafter_of(prompt, SharedNgrams())
    for _ in range(3):
        after.observe(step_of([token, 1]))
    again = drafter_of(prompt, after.memory)  # the same text, other weights

    def prob(drafter: NgramMixer) -> float:
        draft = drafter.propose(prompt, 24)
        return sum(draft.probs[child] for child in draft.children(-1) if draft.tokens[child] == token)

    assert prob(again) > prob(before) or prob(before) > 0.9


def guesses_on_a_known_source(num_tokens: int) -> np.ndarray:
    """(probability drafted, probability in truth, whether it came) of the first guesses on a random Markov chain."""
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.full(12, 0.3), 12)
    text = [0]
    for _ in range(num_tokens):
        text.append(int(rng.choice(12, p=truth[text[-1]])))
    drafter = drafter_of(text[:200], SharedNgrams(), floor=0.0)
    guesses = []
    for i in range(200, num_tokens):
        draft = drafter.propose([], TEXT_WIDTH)
        for child in draft.children(-1):
            token = draft.tokens[child]
            guesses.append((draft.probs[child], truth[text[i - 1], token], token == text[i]))
        drafter.observe(step_of(text[i : i + 1]))
    return np.array(guesses[len(guesses) // 4 :])


def calibration_error(probs: np.ndarray, came: np.ndarray) -> float:
    """ECE: how far the mean probability lies from the share that came, in 15 bins."""
    bins = np.minimum((probs * 15).astype(int), 14)
    return float(sum(abs((probs - came)[bins == b].sum()) for b in range(15)) / len(probs))


def test_probabilities_mean_what_they_say():
    drafted, truth, came = guesses_on_a_known_source(6000).T
    assert calibration_error(drafted, came) < 0.03
    assert np.abs(drafted - truth).mean() < 0.08
    shuffled = np.random.default_rng(0).permutation(came)
    assert calibration_error(drafted, shuffled) > 0.07  # the measure must be able to fail


@property_test
@given(texts, texts, sizes, st.booleans())
def test_the_same_again_gives_the_same_draft(prompt, answer, max_tokens, trees):
    drafts = []
    for _ in range(2):
        drafter = drafter_of(prompt, trees=trees, floor=0.0)
        if answer:
            drafter.observe(step_of(answer, last=True))
        drafts += [drafter.propose([], max_tokens), drafter.propose([], max_tokens)]
    assert all(draft == drafts[0] for draft in drafts)


@property_test
@given(texts, texts.filter(len), st.lists(st.integers(1, 5)), sizes)
def test_drafts_do_not_depend_on_the_sizes_of_the_steps(prompt, answer, cuts, max_tokens):
    whole, parts = drafter_of(prompt), drafter_of(prompt)
    whole.observe(step_of(answer))
    rest = answer
    for cut in cuts:
        if len(rest) > cut:
            parts.observe(step_of(rest[:cut]))
            rest = rest[cut:]
    parts.observe(step_of(rest))
    assert whole.propose([], max_tokens) == parts.propose([], max_tokens)


def accepted_per_step(drafter: NgramMixer, prompt: list[int], record: list[int]) -> float:
    stats = DecodeStats()
    for step in decode(ReplayTarget(record), drafter, prompt, max_new_tokens=len(record), budget=FixedBudget(10)):
        stats.add(step)
    return stats.accepted / stats.steps


@pytest.mark.parametrize("trees", [True, False])
def test_a_prompt_that_holds_the_answer_is_copied(trees):
    chance = random.Random(0)
    document = [chance.randrange(1000) for _ in range(400)]
    assert accepted_per_step(NgramMixer(trees=trees), [*document, 5000], document) > 8.5
    other = [chance.randrange(1000) for _ in range(400)]
    assert accepted_per_step(NgramMixer(trees=trees), [*other, 5000], document) < 1


def test_an_edit_is_survived():
    document = list(range(100))
    edited = [*document[:50], 500]  # a token that was never seen has no context
    drafter = drafter_of([*document, 600, *edited])
    assert drafter.propose([], 10).main_chain().tokens[:8] == tuple(range(51, 59))
    unedited = [token + 1000 if i < 48 else token for i, token in enumerate(edited[:-2])]
    assert not drafter_of([*document, 600, *unedited, 501, 502, 503, 504]).propose([], 10)
    record = [500 if i % 20 == 0 else token for i, token in enumerate(document)]
    assert accepted_per_step(NgramMixer(), [*document, 600], record) > 4.5


@pytest.mark.parametrize("edit", [[60], [60, 61], [60, 51], [60, 61, 62]])
@pytest.mark.parametrize("length", range(2, 26))
def test_what_stands_before_an_edit_counts_as_the_second_implementation_says(length, edit):
    same = list(range(300, 300 + length))  # pairs that have places of their own in the table
    prompt = [9, *same, 50, 51, 52, 53, 54, 8, *same, *edit]
    memory = SharedNgrams()
    draft = drafter_of(prompt, memory, floor=0.0).propose([], 1)
    assert draft.tokens == (50 + len(edit),)
    assert draft.probs[0] == pytest.approx(Plain(memory, [], prompt).probs()[50 + len(edit)], rel=1e-4)


def test_references_are_drafted_from():
    references = [[], list(range(50)), [7]]
    drafter = drafter_of([100, 10, 11], references=references)
    assert drafter.propose([], 10).main_chain().tokens[:5] == (12, 13, 14, 15, 16)
    assert not drafter_of([100, 10, 11]).propose([], 10)
    drafter.begin([100, 20, 21])  # of every sequence
    assert drafter.propose([], 10).main_chain().tokens[:2] == (22, 23)


def test_a_reference_does_not_run_into_the_next():
    assert not drafter_of([1, 2, 3], references=[[1, 2, 3], [9]]).propose([], 10)


def test_earlier_answers_are_drafted_from_within_the_same_memory():
    memory = SharedNgrams()
    first = drafter_of([1], memory)
    first.observe(step_of([50, 51, 52]))
    first.observe(step_of([53, 54, 55], last=True))
    assert not drafter_of([7, 50, 51], memory).propose([], 10), "a drafter reads; who has the whole answer keeps it"
    memory.add([50, 51, 52, 53, 54, 55])
    second = drafter_of([7, 50, 51], memory)
    assert second.propose([], 10).main_chain().tokens[:2] == (52, 53)
    assert not drafter_of([7, 50, 51], SharedNgrams()).propose([], 10)


@property_test
@given(texts, st.lists(texts, min_size=1, max_size=3), texts, sizes)
def test_drafts_of_one_memory_do_not_depend_on_another(prompt, answers, secret, max_tokens):
    """Two tenants share a process and a background corpus, and nothing else."""

    def drafts_of_b(a: SharedNgrams) -> list[Draft]:
        b, drafts = SharedNgrams(), []
        for answer in answers:
            other = drafter_of(secret, a)
            other.observe(step_of([*secret, 3], last=True))
            a.add([*secret, 3])
            other.propose([], max_tokens)
            drafter = drafter_of(prompt, b)
            drafts.append(drafter.propose([], max_tokens))
            drafter.observe(step_of([*answer, 0], last=True))
            b.add([*answer, 0])
            a.add(secret)
        return drafts

    fed = SharedNgrams()
    for _ in range(5):
        fed.add([*secret, *prompt, *prompt])
    assert drafts_of_b(SharedNgrams()) == drafts_of_b(fed)


def test_threads_share_a_memory_while_others_add_to_it(background):
    memory = SharedNgrams(max_bytes=200_000)
    failures: list[BaseException] = []

    def draft(seed: int) -> None:
        try:
            chance = random.Random(seed)
            for _ in range(4):
                drafter = drafter_of([chance.randrange(6) for _ in range(30)], memory, trees=seed % 2 == 0, floor=0.0)
                for i in range(60):
                    max_tokens = chance.choice([1, 10, 40])
                    draft = drafter.propose([], max_tokens)
                    assert_valid(draft, max_tokens, TEXT_WIDTH if seed % 2 == 0 else 1, 0.0)
                    drafter.observe(step_of([chance.randrange(6) for _ in range(3)], draft, last=i == 59))
        except BaseException as error:
            failures.append(error)

    def add(seed: int) -> None:
        try:
            chance = random.Random(seed)
            for _ in range(40):
                memory.add([chance.randrange(6) for _ in range(300)])
                memory.use(background)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=draft, args=(seed,)) for seed in range(8)]
    threads += [threading.Thread(target=add, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_memory_keeps_to_its_bytes():
    memory = SharedNgrams(max_bytes=50_000)
    chance = random.Random(0)
    for _ in range(200):
        memory.add([chance.randrange(1000) for _ in range(100)])
        assert memory.answers.nbytes <= 50_000
    assert SharedNgrams(max_bytes=0).answers.nbytes <= LEAST_BYTES


numbers = st.sampled_from([-(2**31), -100, -1, 0, 1, 2, 3, 2**20 - 1, 2**20, 2**31 - 1])
adverse = st.lists(numbers, max_size=40) | st.builds(lambda token, n: [token] * n, numbers, st.integers(0, 400))


@st.composite
def damaged_backgrounds(draw) -> Background:
    """Arrays of the right types and sizes, and of any contents."""
    rows = draw(st.lists(st.tuples(st.sampled_from([0, 1, 2**32 - 1]), st.integers(0, 2**32 - 1)), max_size=60))
    bits = draw(st.integers(1, 4))
    ends = st.sampled_from([0, 1, 7, 60, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
    index = draw(st.lists(ends, min_size=2**bits + 1, max_size=2**bits + 1))
    return Background({"index_bits": bits}, np.array(index, np.uint64), np.array(rows, np.uint32).reshape(-1, 2))


@property_test
@given(
    st.data(),
    st.none() | damaged_backgrounds(),
    st.lists(adverse, max_size=2),
    st.sampled_from([0, 20_000, 10**6]),
    st.sampled_from([-1.0, 0.0, 0.03, 1.0, 2.0]),
    st.sampled_from([0.0, 0.01, 30.0]),
)
def test_nothing_crashes_it(data, damaged, references, max_bytes, floor, rate):
    """Numbers that are no tokens, stores that forget at every step, a damaged corpus, wild settings."""
    memory = SharedNgrams(damaged, max_bytes=max_bytes, weights=data.draw(st.sampled_from([None, untrained_weights()])))
    drafter = drafter_of(data.draw(adverse), memory, references=references, floor=floor, rate=rate)
    drafter._local.max_bytes = max_bytes
    for _ in range(data.draw(st.integers(1, 5))):
        max_tokens = data.draw(st.sampled_from([1, 2, 10, 100, 1024]))
        draft = drafter.propose([], max_tokens)
        assert_valid(draft, max_tokens, TEXT_WIDTH, 0.0)
        drafter.observe(step_of(data.draw(adverse.filter(len)), draft, last=data.draw(st.booleans())))
        memory.add(data.draw(adverse))
    assert np.isfinite(rows_now(memory.weights)).all()


@pytest.mark.parametrize("trees", [True, False])
def test_a_draft_so_deep_that_its_probability_vanishes(trees):
    """Without a floor: 1024 nodes, each improbable."""
    chance = random.Random(0)
    memory = SharedNgrams(weights=untrained_weights())
    sets_of(memory.weights.own)[-1, -1] = -9.0
    draft = drafter_of([chance.randrange(3) for _ in range(300)], memory, trees=trees, floor=0.0).propose([], 1024)
    assert (len(draft) == 1024 and not trees) or len(draft) > 100
    assert_valid(draft, 1024, TEXT_WIDTH, 0.0)


def test_weights_stay_finite_whatever_comes():
    """Text that changes its habits as soon as they are learned, at a rate a hundred times too high."""
    memory = SharedNgrams()
    drafter = drafter_of([], memory, rate=1.0)
    chance = random.Random(0)
    for token in range(100):
        habit = [chance.randrange(3) for _ in range(chance.randint(1, 5))]
        drafter.observe(step_of([*habit * (1000 // len(habit)), token]))
    assert np.isfinite(rows_now(memory.weights)).all()
    assert_valid(drafter.propose([], 100), 100, TEXT_WIDTH, 0.0)


def test_an_empty_sequence_has_no_draft():
    drafter = NgramMixer()
    assert not drafter.propose([], 10)
    drafter.begin([1])
    assert not drafter.propose([1], 1024)


@pytest.mark.slow
def test_no_index_is_out_of_bounds(tmp_path):
    """The tests of all compiled loops, with checks; without them a wrong index reads what lies there."""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    files = "ngrams/test_store.py", "ngrams/test_likeliest.py", "drafters/test_heads.py", "speculators/test_heads.py"
    command = [sys.executable, "-m", "pytest", "-q", *(tests / file for file in files), __file__]
    subprocess.run(command, env=environment, cwd=tests.parent, check=True, timeout=900)
    too_little_room = (
        "from foretoken.drafters import ngram; d = ngram.NgramMixer(floor=0.0); d.begin([1, 2] * 9); "
        "ngram._Room.for_drafts = lambda room, max_tokens: room.growth; d.propose([], 200)"
    )  # the checks must be able to fail
    failed = subprocess.run([sys.executable, "-c", too_little_room], env=environment, capture_output=True, check=False)
    assert b"IndexError" in failed.stderr


PREPARED = """
from foretoken.drafters import recipe_of
from foretoken.ngrams import kernels
from foretoken import FixedBudget, load
from numba.core.dispatcher import Dispatcher

def signatures():
    loops = {name: loop for name, loop in vars(kernels).items() if isinstance(loop, Dispatcher)}
    return {name: len(loop.signatures) for name, loop in loops.items() if loop.signatures}

recipe_of("DRAFTER").prepare()
before = signatures()
load("toy", drafter="DRAFTER", background=None).generate("ab" * 20, max_new_tokens=200, budget=FixedBudget(7))
print(before == signatures(), *sorted(before))
"""


@pytest.mark.parametrize(
    ("drafter", "compiled"),
    [
        ("mixed", "draft enter_all extend observe recycle rehash"),
        ("ngram", "draft extend observe rehash"),
        ("anpd", ""),
    ],
)
def test_what_a_drafter_runs_is_compiled_before_its_first_answer_and_no_more(drafter, compiled):
    process = subprocess.run(
        [sys.executable, "-c", PREPARED.replace("DRAFTER", drafter)], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["True", *compiled.split()]


def test_a_corpus_needs_no_code_of_its_own(background):
    assert numba.typeof(SharedNgrams(background).frozen) == numba.typeof(SharedNgrams().frozen)
