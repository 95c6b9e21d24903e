"""Blocks of prompts: who finds them, and which are forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foretoken.memory.prefixes import BLOCK, Kept, Prefixes

SIZE = 10  # bytes of a block


def prompt(*blocks: int, rest: int = 1) -> list[int]:
    """A prompt whose blocks are of one token each, and some tokens more."""
    return [block for block in blocks for _ in range(BLOCK)] + [99] * rest


def keep(prefixes: Prefixes, namespace: str | None, tokens: list[int]) -> None:
    """Keep all whole blocks of a prompt that are not kept yet; a block's states are its number."""
    prefix = prefixes.of(namespace)
    num_found = len(prefix.find(tokens))
    new: list[Kept | None] = [Kept(i, SIZE) for i in range(num_found, len(tokens) // BLOCK)]
    prefix.keep(tokens, [*[None] * num_found, *new])


def found(prefixes: Prefixes, namespace: str | None, tokens: list[int]) -> int:
    prefix = prefixes.of(namespace)
    states = prefix.find(tokens)
    assert states == list(range(len(states))) and prefix.num_found == BLOCK * len(states)
    return len(states)


def test_a_prompt_finds_the_blocks_that_it_shares_with_an_earlier_one():
    prefixes = Prefixes(10 * SIZE)
    keep(prefixes, "a", prompt(1, 2, 3, rest=5))
    for tokens, num in (
        (prompt(1, 2, 3), 3),
        (prompt(1, 2, 3, 4), 3),
        (prompt(1, 2, 4), 2),
        (prompt(2, 1), 0),
        (prompt(1, 2, 3, rest=0), 2),  # a token must be left to read
        (prompt(1)[:-2], 0),
    ):
        assert found(prefixes, "a", tokens) == num
    assert prefixes.nbytes == 3 * SIZE


def test_namespaces_find_nothing_of_each_other_and_none_keeps_nothing():
    prefixes = Prefixes(10 * SIZE)
    keep(prefixes, "a", prompt(1, 2))
    keep(prefixes, None, prompt(3))
    assert found(prefixes, "b", prompt(1, 2)) == found(prefixes, None, prompt(1, 2)) == 0
    assert found(prefixes, "a", prompt(3)) == 0 and prefixes.nbytes == 2 * SIZE


def test_what_was_not_used_for_longest_is_forgotten_first_and_ends_before_beginnings():
    prefixes = Prefixes(4 * SIZE)
    keep(prefixes, "a", prompt(1, 2))
    keep(prefixes, "a", prompt(3, 4))
    assert found(prefixes, "a", prompt(1, 2)) == 2
    keep(prefixes, "a", prompt(5))
    assert [found(prefixes, "a", prompt(*blocks)) for blocks in ((1, 2), (3, 4), (5,))] == [2, 1, 1]
    keep(prefixes, "a", prompt(6, 7, 8, 9, 10))
    assert found(prefixes, "a", prompt(6, 7, 8, 9, 10)) == 4 and prefixes.nbytes == 4 * SIZE


def test_with_no_room_nothing_is_kept():
    prefixes = Prefixes(0)
    keep(prefixes, "a", prompt(1))
    assert found(prefixes, "a", prompt(1)) == prefixes.nbytes == 0
    assert prefixes.num_asked == 2 * len(prompt(1)) and prefixes.num_hits == 0


@given(
    st.integers(0, 6),
    st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(1, 3), min_size=1, max_size=4)), max_size=12),
)
def test_never_more_is_kept_than_there_is_room_for_and_never_another_prompts(room, prompts):
    prefixes = Prefixes(room * SIZE)
    seen: dict[str, list[list[int]]] = {"a": [], "b": []}
    for namespace, blocks in prompts:
        most = max((shared(blocks, earlier) for earlier in seen[namespace]), default=0)
        assert found(prefixes, namespace, prompt(*blocks)) <= most
        keep(prefixes, namespace, prompt(*blocks))
        seen[namespace].append(blocks)
        assert prefixes.nbytes <= prefixes.max_bytes


def shared(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
