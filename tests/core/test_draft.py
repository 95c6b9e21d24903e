from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretoken import Draft


@st.composite
def drafts(draw) -> Draft:
    size = draw(st.integers(0, 12))
    tokens = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    parents = [draw(st.integers(-1, node - 1)) for node in range(size)]
    probs = draw(st.sampled_from([(), tuple(1 / (node + 2) for node in range(size))]))
    return Draft(tuple(tokens), tuple(parents), probs)


@given(drafts())
def test_a_node_stands_one_deeper_than_its_parent_and_ends_its_own_path(draft):
    for node, parent in enumerate(draft.parents):
        assert node in draft.children(parent)
        assert draft.path(node) == [*draft.path(parent), draft.tokens[node]]
        assert draft.depths[node] == len(draft.path(node))
    assert draft.is_chain == (draft.depths == tuple(range(1, len(draft) + 1)))


@given(drafts(), st.integers(0, 6))
def test_within_keeps_the_shallow_paths_and_no_other(draft, max_depth):
    paths = {tuple(draft.path(node)) for node in range(len(draft)) if draft.depths[node] <= max_depth}
    cut = draft.within(max_depth)
    assert {tuple(cut.path(node)) for node in range(len(cut))} == paths


@given(drafts())
def test_the_main_chain_is_a_branch_down_to_a_leaf(draft):
    chain = draft.main_chain()
    assert chain.is_chain and len(chain.probs) in (0, len(chain))
    leaves = [node for node in range(len(draft)) if not draft.children(node)]
    assert not draft or list(chain.tokens) in [draft.path(leaf) for leaf in leaves]


def test_the_main_chain_follows_the_likelier_child():
    draft = Draft((1, 2, 3, 4), (-1, -1, 1, 1), (0.2, 0.7, 0.1, 0.6))
    assert draft.main_chain() == Draft.chain((2, 4), (0.7, 0.6))


@pytest.mark.parametrize(
    ("tokens", "parents", "probs"),
    [((1,), (), ()), ((1, 2), (0, -1), ()), ((1,), (0,), ()), ((1,), (-2,), ()), ((1, 2), (-1, 0), (0.5,))],
)
def test_malformed_drafts_are_refused(tokens, parents, probs):
    with pytest.raises(ValueError, match="draft"):
        Draft(tokens, parents, probs)
