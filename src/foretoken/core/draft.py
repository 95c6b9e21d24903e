"""Draft: guessed tokens, their parents, and what the drafter knows of their chances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foretoken.core.lazy import lazy


@dataclass(frozen=True)
class Draft:
    """Guessed tokens as a tree: node i follows node ``parents[i]``, and -1 is the last committed token.

    A chain is a tree with one branch. A node comes after its parent, so a prefix of a draft is a draft. The last nodes
    may be lookahead rows: scored in the same forward, so that the drafter sees the target's scores there, and never
    accepted.

    Args:
        tokens: The guessed token of each node.
        parents: The node that each node follows; the same length as ``tokens``.
        probs: The drafter's estimate that node i is right given that its parent is, one per node; empty where the
            drafter knows nothing. Of a lookahead row: how many tokens it is expected to bring in later steps.
        num_lookahead: How many of the last nodes are lookahead rows.

    Raises:
        ValueError: If the lengths differ, or a node does not come after its parent.

    >>> draft = Draft(tokens=(4, 7, 1), parents=(-1, -1, 0))  # 4 1 or 7
    >>> draft.children(-1), draft.depths, draft.path(2)
    ([0, 1], (1, 1, 2), [4, 1])
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    probs: tuple[float, ...] = ()
    num_lookahead: int = 0

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents):
            raise ValueError("a draft needs one parent per token")
        if len(self.probs) not in (0, len(self.tokens)):
            raise ValueError("a draft needs one probability per token, or none at all")
        if any(not -1 <= parent < node for node, parent in enumerate(self.parents)):
            raise ValueError("a node of a draft must come after its parent")
        if not 0 <= self.num_lookahead <= len(self.tokens):
            raise ValueError("the lookahead rows of a draft are some of its last nodes")

    @classmethod
    def chain(cls, tokens: Sequence[int], probs: Sequence[float] = ()) -> Draft:
        """One guess after the other."""
        return cls(tuple(tokens), tuple(range(-1, len(tokens) - 1)), tuple(probs))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_guesses(self) -> int:
        """How many of the first nodes may be accepted: all but the lookahead rows."""
        return len(self.tokens) - self.num_lookahead

    @property
    def is_chain(self) -> bool:
        """Whether every node follows the one before it."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    @lazy
    def depths(self) -> tuple[int, ...]:
        """How many tokens after the last committed one each node stands; 1 for a child of the root."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == -1 else depths[parent] + 1)
        return tuple(depths)

    @lazy
    def window_parents(self) -> set[int]:
        """The guesses that lookahead rows hang on."""
        num = self.num_guesses
        return {parent for parent in self.parents[num:] if 0 <= parent < num}

    def children(self, node: int) -> list[int]:
        """The guesses that follow ``node``."""
        return [child for child, parent in enumerate(self.parents[: self.num_guesses]) if parent == node]

    def ancestors(self, node: int) -> list[int]:
        """The nodes from the root's child down to ``node``, with ``node``; empty for the root, -1."""
        nodes: list[int] = []
        while node != -1:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def path(self, node: int) -> list[int]:
        """The tokens from the root's child down to ``node``."""
        return [self.tokens[ancestor] for ancestor in self.ancestors(node)]

    def select(self, nodes: Sequence[int]) -> Draft:
        """The draft of these nodes alone, in this order, lookahead rows last.

        Raises:
            KeyError: If a node's parent is not among the nodes before it.
        """
        index = {-1: -1}
        parents = []
        for new, node in enumerate(nodes):
            parents.append(index[self.parents[node]])
            index[node] = new
        return Draft(
            tuple(self.tokens[node] for node in nodes),
            tuple(parents),
            tuple(self.probs[node] for node in nodes) if self.probs else (),
            sum(node >= self.num_guesses for node in nodes),
        )

    def with_guesses(self, nodes: Sequence[int]) -> Draft:
        """The draft of these guesses, and of all lookahead rows if every guess that they stand on is among them.

        Args:
            nodes: Guesses, each after its parent.

        Raises:
            KeyError: If a guess's parent is not among the nodes before it.
        """
        lookahead = self.window_parents <= set(nodes)
        return self.select([*nodes, *range(self.num_guesses, len(self))] if lookahead else nodes)

    def within(self, max_depth: int) -> Draft:
        """The draft without the guesses deeper than ``max_depth`` tokens; lookahead rows stay if they hang on none."""
        guesses = range(self.num_guesses)
        if all(self.depths[node] <= max_depth for node in guesses):
            return self
        return self.with_guesses([node for node in guesses if self.depths[node] <= max_depth])

    def guesses(self) -> Draft:
        """The draft without its lookahead rows."""
        return self.select(range(self.num_guesses)) if self.num_lookahead else self

    def main_chain(self) -> Draft:
        """The most probable branch, without lookahead rows, for a target that verifies only chains.

        Without probabilities it is the first one.
        """
        return self if self.is_chain and not self.num_lookahead else self.select(self.main_nodes())

    def main_nodes(self) -> list[int]:
        """The nodes of the main chain."""
        nodes: list[int] = []
        while children := self.children(nodes[-1] if nodes else -1):
            nodes.append(max(children, key=self.probs.__getitem__) if self.probs else children[0])
        return nodes
