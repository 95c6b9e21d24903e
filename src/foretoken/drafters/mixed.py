"""The n-gram core and trained heads in one tree: what the text repeats, and what the model's state says of the rest.

Both draft a tree. A node that either of them names gets one probability from a logistic mixer over the two chances, as
the votes within the n-gram core do. Its weights depend on whether each drafter names the node, names others there (then
what those leave is its evidence), or has nothing to say there. It learns from the nodes that come to be judged.

The refined drafts of Kim et al. 2024 (arXiv 2404.09221) rescore the heads' candidates with an n-gram model. Here each
also proposes what the other does not know.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from foretoken.core.contracts import Drafter, Need, Step
from foretoken.core.draft import Draft
from foretoken.core.errors import RequestError
from foretoken.drafters.heads import HeadsDrafter, Speculator
from foretoken.drafters.ngram import Ngram, NgramMixer
from foretoken.drafters.recipe import Parts
from foretoken.ngrams.shared import SharedNgrams

NAMES, NAMES_OTHERS, SILENT = range(3)  # what a drafter may do at a node
HEAVY = 0.02  # seconds of a forward from which on heads join by themselves
LEAST, MOST = 1e-4, 0.9999  # between which chances are told apart


class Opinion(NamedTuple):
    """What one drafter says of a node.

    Args:
        kind: NAMES, NAMES_OTHERS or SILENT.
        evidence: The log-odds of the node if it names it; if it names others, the logarithm of what they leave; 0 if
            it is silent.
    """

    kind: int
    evidence: float


class Node(NamedTuple):
    """A node of the tree of both.

    Args:
        token: Its token.
        parent: Its parent; -1 for the last committed token.
        depth: 1 for a child of the root.
        opinions: Of the n-gram core and of the heads.
        prob: The chance that it is right if its parent is.
    """

    token: int
    parent: int
    depth: int
    opinions: tuple[Opinion, Opinion]
    prob: float


class Weighing:
    """The logistic mixer: a weight for the evidence of each drafter and a bias, by what the two drafters do.

    Depth tells nothing more: on recorded drafts, weights of each depth's own were within noise of the common ones.
    """

    RATE = 0.003
    START: ClassVar = {  # fitted by scripts/learn_mixed.py
        (NAMES, NAMES): (0.65, 0.56, 1.39),
        (NAMES, NAMES_OTHERS): (1.11, 0.51, -0.04),
        (NAMES, SILENT): (0.98, 0.0, 0.48),
        (NAMES_OTHERS, NAMES): (0.74, 0.86, -0.32),
        (SILENT, NAMES): (0.0, 0.95, -0.06),
    }

    def __init__(self) -> None:
        self.weights = {kinds: list(start) for kinds, start in self.START.items()}

    def prob(self, opinions: tuple[Opinion, Opinion]) -> float:
        """The chance of a node."""
        a, b, bias = self.weights[opinions[0].kind, opinions[1].kind]
        z = a * opinions[0].evidence + b * opinions[1].evidence + bias
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, z))))

    def learn(self, node: Node, right: bool) -> None:
        """A node was judged."""
        weights = self.weights[node.opinions[0].kind, node.opinions[1].kind]
        step = self.RATE * (right - self.prob(node.opinions))  # down the gradient of the log loss
        for i, evidence in enumerate((node.opinions[0].evidence, node.opinions[1].evidence, 1.0)):
            weights[i] += step * evidence


class Arms:
    """Whether to ask the heads: a bandit with two arms, and the tokens of a second as the reward.

    Args:
        margin: How many times the tokens of a second there must be with the heads.
    """

    FIRST, EVERY = 4, 24  # steps of each arm at first, and steps between two tries of the worse one
    FORGET = 0.05  # of what an arm gave, each time

    def __init__(self, margin: float = 1.0) -> None:
        self._margin = margin
        self._tokens, self._seconds, self._steps = [0.0, 0.0], [0.0, 0.0], [0, 0]

    def choose(self) -> bool:
        """Whether the heads are asked in the next step."""
        without, asked = self._steps
        if min(asked, without) < self.FIRST:
            return asked <= without
        least = self._margin * self._tokens[False] * self._seconds[True]
        better = self._tokens[True] * self._seconds[False] >= least
        return better == bool((asked + without) % self.EVERY)

    def add(self, asked: bool, tokens: int, seconds: float) -> None:
        """A step gave so many tokens in so many seconds."""
        self._steps[asked] += 1
        self._tokens[asked] += tokens - self.FORGET * self._tokens[asked]
        self._seconds[asked] += seconds - self.FORGET * self._seconds[asked]


class MixedHeadsDrafter:
    """Drafts the most probable paths of two trees.

    Args:
        ngrams: The n-gram core.
        heads: The trained heads.
        trees: Whether to draft trees; otherwise a chain of most probable tokens.
        by_clock: Whether the heads are asked only while that gives more tokens a second.
    """

    calibrated = True

    def __init__(self, ngrams: NgramMixer, heads: HeadsDrafter, *, trees: bool = True, by_clock: bool = False) -> None:
        self.ngrams, self.heads, self.trees = ngrams, heads, trees
        self._arms = Arms() if by_clock else None
        self._asked, self._started = True, 0.0
        self.weighing = Weighing()
        self._nodes: list[Node] = []  # of the last draft, in the order in which they were found

    @property
    def needs(self) -> frozenset[Need]:
        """What either of them needs."""
        return self.ngrams.needs | self.heads.needs

    @property
    def memory(self) -> SharedNgrams:
        """What the n-gram core shares with other sequences."""
        return self.ngrams.memory

    def begin(self, prompt: Sequence[int]) -> None:
        self.ngrams.begin(prompt)
        self.heads.begin(prompt)
        self._nodes = []
        self._started = 0.0

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        self._started = time.perf_counter()
        self._asked = self._arms is None or self._arms.choose()
        ours = self.ngrams.propose(context, max_tokens)
        if not self._asked:
            return ours
        self._nodes = self._merged(ours, self.heads.propose(context, max_tokens))
        paths: list[float] = []
        for node in self._nodes:
            paths.append(node.prob * (paths[node.parent] if node.parent >= 0 else 1.0))
        # A parent was found before its children and is no less probable; the sort keeps the order of equals.
        order = sorted(range(len(paths)), key=paths.__getitem__, reverse=True)[:max_tokens]
        whole = Draft(
            tuple(node.token for node in self._nodes),
            tuple(node.parent for node in self._nodes),
            tuple(node.prob for node in self._nodes),
        )
        return whole.select(order)

    def _merged(self, one: Draft, two: Draft) -> list[Node]:
        """The nodes of both drafts, each once."""
        children = _children(one), _children(two)
        nodes: list[Node] = []
        places: list[list[int | None]] = [[-1, -1]]  # of the root, then of each node: where the two drafts have it
        for parent in range(-1, len(one) + len(two)):
            if parent == len(nodes):
                break
            at = places[parent + 1]
            known = [{} if node is None else named.get(node, {}) for node, named in zip(at, children, strict=True)]
            depth = 1 if parent < 0 else nodes[parent].depth + 1
            tokens = dict.fromkeys([*known[0], *known[1]])
            ours, theirs = _opinions(one, known[0], tokens), _opinions(two, known[1], tokens)
            opinions = list(zip(ours, theirs, strict=True))
            probs = [self.weighing.prob(both) for both in opinions]
            total = max(1.0, sum(probs))
            found = sorted(zip(tokens, opinions, probs, strict=True), key=lambda one: -one[2])
            for token, both, prob in found if self.trees else found[:1]:
                nodes.append(Node(token, parent, depth, both, prob / total))
                places.append([named.get(token) for named in known])
        return nodes

    def observe(self, step: Step) -> None:
        self._judge(step.tokens)
        self.ngrams.observe(step)
        self.heads.observe(step)
        if self._arms is not None and self._started:
            self._arms.add(self._asked, len(step.tokens), time.perf_counter() - self._started)
        self._started = 0.0

    def _judge(self, tokens: Sequence[int]) -> None:
        """Learn from every node whose parent turned out right."""
        right = {-1}
        for index, node in enumerate(self._nodes):
            if node.parent in right and node.depth <= len(tokens):
                held = node.token == tokens[node.depth - 1]
                self.weighing.learn(node, held)
                if held:
                    right.add(index)
        self._nodes = []


def _children(draft: Draft) -> dict[int, dict[int, int]]:
    """For each node that has any, its children by their tokens."""
    children: dict[int, dict[int, int]] = {}
    for node, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
        children.setdefault(parent, {}).setdefault(token, node)
    return children


def _opinions(draft: Draft, known: dict[int, int], tokens: Iterable[int]) -> list[Opinion]:
    """What a draft says of these tokens where it has these children."""
    if not known:
        return [Opinion(SILENT, 0.0) for _ in tokens]
    probs = {token: draft.probs[node] for token, node in known.items()}
    others = Opinion(NAMES_OTHERS, math.log(_clipped(1 - sum(probs.values()))))
    return [Opinion(NAMES, _log_odds(probs[token])) if token in probs else others for token in tokens]


def _log_odds(prob: float) -> float:
    prob = _clipped(prob)
    return math.log(prob / (1 - prob))


def _clipped(prob: float) -> float:
    return max(LEAST, min(MOST, prob))


@dataclass(frozen=True)
class Mixed(Ngram):
    """The n-gram core with token recycling; trained heads join where they may pay.

    Args:
        floor: As ``Ngram`` has it.
        rate: As ``Ngram`` has it.
        heads: Whether trained heads join. If None, where the model has some and a forward takes at least 20 ms, about
            ten times what they take on a CPU.
    """

    name = "mixed"
    needs = frozenset({"top"})
    recycle = True
    heads: bool | None = None

    def check(self, parts: Parts) -> None:
        super().check(parts)
        if self.heads:
            if parts.heads is None:
                raise RequestError(
                    "The drafter 'mixed' is to take heads, and there are none for this model: name their folder as the "
                    "speculator, or leave out heads=true."
                )
            Speculator().check(parts)

    def make(self, parts: Parts) -> Drafter:
        self.check(parts)
        ngrams = self.mixer(parts)
        if not self._joined(parts):
            return ngrams
        heads = Speculator(floor=self.floor).make(parts)
        return MixedHeadsDrafter(ngrams, heads, trees=parts.target.supports_trees, by_clock=self.floor is None)

    def _joined(self, parts: Parts) -> bool:
        if self.heads is not None:
            return self.heads
        has_heads = parts.heads is not None and "hidden" in parts.target.provides
        return has_heads and parts.costs.seconds(1) >= HEAVY
