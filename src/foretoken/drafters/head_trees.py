"""Shapes of the trees that trained heads draft: best first under a budget, or as they were published."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from foretoken.core.draft import Draft
from foretoken.core.errors import RequestError

Floats = NDArray[np.float64]

MOST_NODES = 4096  # of a published tree
MOST_RANKS = 64  # candidates of a row
LATTICE = 16  # of them in a lattice
PATHS = "paths"  # the tree of the best paths of a lattice


@dataclass
class Tree:
    """The nodes that heads have named so far, a level for each head.

    Args:
        tokens: The token of each node.
        parents: The node that each node follows; -1 for the pending token.
        ranks: The rank of each node among its siblings, 0 for the likeliest.
        probs: The chance of each node if its parent is right.
        paths: The chance that a node and all before it are right.
        first: The first node of the last level.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    probs: list[float] = field(default_factory=list)
    paths: list[float] = field(default_factory=list)
    first: int = 0

    def add(self, nodes: Sequence[int], tokens: NDArray[Any], probs: Floats) -> None:
        """A level: row i of ``tokens`` and ``probs`` [rows, children] has the children of ``nodes[i]``, best first."""
        self.first = len(self.tokens)
        children = tokens.shape[1]
        self.tokens += tokens.ravel().tolist()
        self.ranks += [*range(children)] * len(nodes)
        for node, row in zip(nodes, probs.tolist(), strict=True):
            path = self.paths[node] if node >= 0 else 1.0
            self.parents += [node] * children
            self.probs += row
            self.paths += [path * prob for prob in row]

    @property
    def level(self) -> range:
        """The nodes of the last level."""
        return range(self.first, len(self.tokens))

    def leading_to(self, nodes: Sequence[int]) -> list[int]:
        """Some nodes and all before them."""
        found: set[int] = set()
        for node in nodes:
            while node >= 0 and node not in found:
                found.add(node)
                node = self.parents[node]
        return sorted(found)

    def best(self, nodes: Sequence[int], num: int) -> list[int]:
        """The most probable of some nodes, the best first; of equals the first, so that a parent comes first."""
        return sorted(nodes, key=self.paths.__getitem__, reverse=True)[:num]

    def draft(self, nodes: Sequence[int]) -> Draft:
        """The draft of these nodes, each after its parent."""
        index = {-1: -1} | {node: new for new, node in enumerate(nodes)}
        return Draft(
            tuple(self.tokens[node] for node in nodes),
            tuple(index[self.parents[node]] for node in nodes),
            tuple(self.probs[node] for node in nodes),
        )


class Shape(Protocol):
    """Which nodes of a tree are named, continued and drafted."""

    def children(self, depth: int) -> int:
        """How many children a node at this depth has at most; the pending token is at depth 0."""
        ...

    def continued(self, tree: Tree, depth: int, max_tokens: int) -> list[int]:
        """The nodes of the last level, at ``depth`` >= 1, that the next head continues; none to stop."""
        ...

    def drafted(self, tree: Tree, max_tokens: int) -> list[int]:
        """The nodes of the draft, at most ``max_tokens``, each after its parent."""
        ...


@dataclass(frozen=True)
class BestFirst:
    """The most probable paths, as many as the budget takes.

    No node is continued that is not among them: its children are no likelier than it is.

    Args:
        floor: The least probability of a path that is worth a node.
        width: Most children of a node, and most nodes that a head continues; 1 makes a chain.
    """

    floor: float
    width: int

    def children(self, depth: int) -> int:
        return self.width

    def continued(self, tree: Tree, depth: int, max_tokens: int) -> list[int]:
        among = self.drafted(tree, max_tokens)
        return [node for node in among if node >= tree.first][: self.width]

    def drafted(self, tree: Tree, max_tokens: int) -> list[int]:
        return tree.best([node for node, path in enumerate(tree.paths) if path >= self.floor], max_tokens)


@dataclass(frozen=True)
class TopKPerHead:
    """The candidates of the MLP speculator as published (arXiv 2404.19124).

    A full tree with so many children at each depth, of which the most probable leaves stay, and what leads to them.

    Args:
        tops: Children at each depth, the published ``top_k_tokens_per_head``.
        leaves: How many leaves stay, the published ``n_candidates``.
    """

    tops: tuple[int, ...]
    leaves: int

    def children(self, depth: int) -> int:
        return self.tops[depth] if depth < len(self.tops) else 0

    def continued(self, tree: Tree, depth: int, max_tokens: int) -> list[int]:
        return list(tree.level) if depth < len(self.tops) else []

    def drafted(self, tree: Tree, max_tokens: int) -> list[int]:
        return tree.best(tree.leading_to(tree.best(tree.level, self.leaves)), max_tokens)


@dataclass(frozen=True)
class BestPaths:
    """The most probable paths through the lattice of the heads' best tokens, merged into one tree.

    Refined drafts as published (Kim et al. 2024, arXiv 2404.09221): the n best paths of a lattice of the 16 best tokens
    of each head. They are found from depth to depth: of all paths that reach a depth the n best are continued. If what
    is said of a token does not depend on those before it, no better path is missed. Otherwise one is whose beginning is
    not among the n best.

    Args:
        paths: How many.
    """

    paths: int

    def children(self, depth: int) -> int:
        return LATTICE

    def continued(self, tree: Tree, depth: int, max_tokens: int) -> list[int]:
        return tree.best(tree.level, self.paths)

    def drafted(self, tree: Tree, max_tokens: int) -> list[int]:
        return tree.best(tree.leading_to(tree.best(tree.level, self.paths)), max_tokens)


@dataclass(frozen=True)
class RankPaths:
    """A static tree, as Medusa drafts it (arXiv 2401.10774): the same ranks at every step.

    Args:
        paths: Each node as the ranks that lead to it, with its own.
    """

    paths: frozenset[tuple[int, ...]]

    def children(self, depth: int) -> int:
        return max((1 + path[depth] for path in self.paths if len(path) == depth + 1), default=0)

    def continued(self, tree: Tree, depth: int, max_tokens: int) -> list[int]:
        inner = {path[:-1] for path in self.paths}
        return [node for node in tree.level if self._path(tree, node) in inner]

    def drafted(self, tree: Tree, max_tokens: int) -> list[int]:
        return tree.best([node for node in range(len(tree.tokens)) if self._path(tree, node) in self.paths], max_tokens)

    def _path(self, tree: Tree, node: int) -> tuple[int, ...]:
        ranks: list[int] = []
        while node >= 0:
            ranks.append(tree.ranks[node])
            node = tree.parents[node]
        return tuple(ranks[::-1])


def read_shape(text: str, leaves: int) -> TopKPerHead | BestPaths | RankPaths:
    """The published shape that a text names.

    Args:
        text: Children at each depth, such as "4x3x2x2"; "paths" for the best paths; or a list of rank paths, as
            Medusa's files have it, such as "[[0], [0, 0], [1]]".
        leaves: Of a tree that is given by children, or by the best paths.

    Raises:
        ForetokenError: If it is neither, a path's parent is missing, or there are more than 4096 nodes.

    >>> read_shape("4x3x2x2", 5)
    TopKPerHead(tops=(4, 3, 2, 2), leaves=5)
    """
    refused = RequestError(
        f"There is no tree {text!r:.100}: give best, paths, the children at each depth, such as 4x3x2x2, or a list of "
        "ranks, such as [[0], [0, 0], [1]]."
    )
    if text == PATHS:
        return BestPaths(leaves)
    parts = text.split("x")
    if all(part.isdecimal() and 0 < len(part) < 5 for part in parts):
        tops = tuple(map(int, parts))
        if 0 < math.prod(tops) <= MOST_NODES:
            return TopKPerHead(tops, leaves)
        raise refused
    try:
        paths = frozenset(tuple(path) for path in json.loads(text))
    except (ValueError, TypeError) as error:
        raise refused from error
    ranks = [rank for path in paths for rank in path]
    if not ranks or len(paths) > MOST_NODES or not all(type(rank) is int and 0 <= rank < MOST_RANKS for rank in ranks):
        raise refused
    if not all(path and path[:-1] in paths | {()} for path in paths):
        raise refused
    return RankPaths(paths)
