"""Trained heads guess the next tokens from what the target's output head read.

The combined token and embedding heads of Wertheimer et al. 2024 (arXiv 2404.19124), the blockwise heads of Stern et al.
2018 (arXiv 1811.03115) and Medusa (Cai et al. 2024, arXiv 2401.10774), whose files are in ``speculators/``.

Under sampling the target's own token is the argmax of its logits and the seed's noise, which is known before the draft.
So the noise joins what the heads say. How much it tells depends on how like the target the heads are, and on the text:
the weights of both are learned while the answer comes. It changes which tokens are guessed and never which are given.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foretoken.core.contracts import Candidates, Heads, Need, Step
from foretoken.core.costs import Median
from foretoken.core.draft import Draft
from foretoken.core.errors import RequestError
from foretoken.drafters.draft_model import Share
from foretoken.drafters.head_trees import BestFirst, Floats, Shape, Tree, read_shape
from foretoken.drafters.recipe import Parts, Recipe, option

FLOOR = 0.0285  # about what one more row of a forward costs on a CPU
LEAST_FLOOR = 0.003  # where rows cost nothing: a draft takes time, too
WIDTH = 8
BEST = "best"  # the tree of the most probable paths
LEAST_REST = 0.01  # what the tokens that are no candidates have together, at least
MEAN_NOISE = 0.5772  # of the noise that the largest of several tokens has, beyond what they have together


class Level(NamedTuple):
    """What a head was asked, and what was made of the answer.

    Args:
        tokens: [rows, k].
        evidence: [2, rows, k + 1], log-probability and noise of each candidate and of all other tokens together.
        chances: [rows, k + 1], of the same.
        order: [rows, children], the likeliest candidates, best first.
        steps: [rows, children], the step of each one's chance.
        rows: By row of the level before and candidate there, the row that continues it.
    """

    tokens: NDArray[Any]
    evidence: Floats
    chances: Floats
    order: NDArray[Any]
    steps: NDArray[Any]
    rows: dict[tuple[int, int], int]


class Weights:
    """How much the log-probabilities and the noise tell, at each depth: softmax(a * logprob + b * noise) is a chance.

    A belief around where they start, which every judged token moves up the gradient of its log-likelihood; the more it
    has seen of what they tell apart, the less.

    Args:
        num_heads: How many depths there are.
        noise: Whether the noise joins.
    """

    START = (0.9, 0.75)  # fitted to an MLP speculator of the bundled model, at temperature 0.8
    FIRST, MOST = 12.0, 1000.0  # what is believed of the start, and how much is never forgotten: sums of variances

    def __init__(self, num_heads: int, noise: bool) -> None:
        self.values = np.tile(self.START if noise else (1.0, 0.0), (num_heads, 1))
        self._precision = np.full((num_heads, 2), self.FIRST)
        self._noise = noise

    def chances(self, depth: int, evidence: Floats) -> Floats:
        """[rows, k + 1], of ``evidence`` [2, rows, k + 1]."""
        a, b = self.values[depth].tolist()
        scores: Floats = a * evidence[0]
        if b:
            scores += b * evidence[1]
        scores -= scores.max(1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(1, keepdims=True)
        return scores

    def learn(self, depth: int, evidence: Floats, chances: Floats, right: int) -> None:
        """One of the candidates came: ``evidence`` [2, k + 1], ``chances`` [k + 1]."""
        means = evidence @ chances
        variances = (evidence * evidence) @ chances - means * means
        self._precision[depth] = np.minimum(self._precision[depth] + variances, self.MOST)
        change = (evidence[:, right] - means) / self._precision[depth]
        self.values[depth] += change if self._noise else change * (1.0, 0.0)
        np.clip(self.values[depth], 0.0, 2.0, out=self.values[depth])


class Calibration:
    """How often a candidate of some chance was right, by depth and rank.

    Args:
        num_heads: How many depths there are.
        num_ranks: How many ranks are told apart.
    """

    STEPS = np.array([0.02, 0.06, 0.15, 0.35, 0.6, 0.85, 0.97])  # between which chances are taken together
    PRIOR = 8.0  # times that a chance counts as having been right as often as it says

    def __init__(self, num_heads: int, num_ranks: int) -> None:
        shape = (num_heads, num_ranks, len(self.STEPS) + 1)
        self._said, self._right = np.full(shape, self.PRIOR), np.full(shape, self.PRIOR)

    def steps(self, chances: Floats) -> NDArray[Any]:
        """The step of each chance."""
        steps: NDArray[Any] = np.searchsorted(self.STEPS, chances)
        return steps

    def probs(self, depth: int, chances: Floats, steps: NDArray[Any]) -> Floats:
        """The chances [rows, ranks] as they turned out lately; a row's sum is at most 1."""
        ranks = np.arange(chances.shape[1])
        probs: Floats = chances * (self._right[depth, ranks, steps] / self._said[depth, ranks, steps])
        probs /= np.maximum(1.0, probs.sum(1, keepdims=True))
        return probs

    def learn(self, depth: int, chances: Floats, steps: NDArray[Any], right: NDArray[Any]) -> None:
        """A row of candidates was judged: [ranks] each."""
        ranks = np.arange(chances.size)
        self._said[depth, ranks, steps] += chances
        self._right[depth, ranks, steps] += right


class HeadsDrafter:
    """Drafts a tree of what trained heads name.

    Args:
        heads: The heads.
        shape: Of the tree. If None, the most probable paths, as many as the budget takes.
        noise: Whether the seed's noise joins what the heads say.
        by_clock: Whether a further head is asked only if it is expected to bring more tokens than its time brings
            otherwise.

    >>> from foretoken.core.decode import decode
    >>> from foretoken.engines.toy import ToyHeads, ToyTarget
    >>> target = ToyTarget()
    >>> drafter = HeadsDrafter(ToyHeads(target, wrong=1000))
    >>> sum(step.num_accepted > 0 for step in decode(target, drafter, [1, 2], max_new_tokens=9))
    2
    """

    needs: frozenset[Need] = frozenset({"hidden"})
    calibrated = True

    FORGET = 0.1  # of the tokens and seconds of late, each step

    def __init__(self, heads: Heads, shape: Shape | None = None, noise: bool = True, *, by_clock: bool = False) -> None:
        self.heads, self.noise, self.by_clock = heads, noise, by_clock
        self._found = Share(0.5)  # how often a further head's children have the right token if their parent is right
        self._head_seconds = Median()  # of a further head
        self._tokens = self._seconds = 0.0  # of late, in steps that were drafted for
        self._started: float | None = None
        self.shape = BestFirst(FLOOR, WIDTH) if shape is None else shape
        self._forget()

    def begin(self, prompt: Sequence[int]) -> None:
        self._forget()

    def _forget(self) -> None:
        self._state: Any = None  # of the row that chose the pending token
        self._levels: list[Level] = []  # of the last draft
        self._weights: Weights | None = None  # until it is known whether there is noise
        self._calibration: Calibration | None = None

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        tree, self._levels, self._started = Tree(), [], time.perf_counter()
        said = self.heads.start(self._state, context[-1], len(context))
        self._add_level(tree, said, [-1], {})
        while len(self._levels) < self.heads.num_heads:
            first, nodes = tree.first, self.shape.continued(tree, len(self._levels), max_tokens)
            if not nodes or (self.by_clock and not self._pays(tree, nodes)):
                break
            started = time.perf_counter()
            order = self._levels[-1].order
            places = [divmod(node - first, order.shape[1]) for node in nodes]
            asked = [(row, int(order[row, rank])) for row, rank in places]
            said = self.heads.extend([row for row, _ in asked], [candidate for _, candidate in asked])
            self._add_level(tree, said, nodes, {place: row for row, place in enumerate(asked)})
            self._head_seconds.add(time.perf_counter() - started)
        return tree.draft(self.shape.drafted(tree, max_tokens))

    def _pays(self, tree: Tree, nodes: list[int]) -> bool:
        """Whether the next head may bring as many tokens as its time brings otherwise."""
        rate = self._tokens / self._seconds if self._seconds else 0.0
        hope = self._found.value * sum(tree.paths[node] for node in nodes)
        return hope >= rate * self._head_seconds.value

    def _add_level(self, tree: Tree, said: Candidates, nodes: list[int], rows: dict[tuple[int, int], int]) -> None:
        """The children of some nodes, of which the heads said this."""
        depth = len(self._levels)
        evidence = _evidence(said, self.noise)
        weights, calibration = self._learned(evidence)
        tokens, chances = np.asarray(said.tokens), weights.chances(depth, evidence)
        order = np.argsort(-chances[:, :-1], axis=1, kind="stable")[:, : self.shape.children(depth)]
        best = np.take_along_axis(chances, order, 1)
        steps = calibration.steps(best)
        self._levels.append(Level(tokens, evidence, chances, order, steps, rows))
        tree.add(nodes, np.take_along_axis(tokens, order, 1), calibration.probs(depth, best, steps))

    def _learned(self, evidence: Floats) -> tuple[Weights, Calibration]:
        """What is learned of this text, from nothing on at its first draft."""
        if self._weights is None or self._calibration is None:
            num_heads = self.heads.num_heads
            self._weights = Weights(num_heads, bool(evidence[1].any()))
            num_ranks = max(self.shape.children(depth) for depth in range(num_heads))
            self._calibration = Calibration(num_heads, num_ranks)
        return self._weights, self._calibration

    def observe(self, step: Step) -> None:
        assert step.scores is not None, "see needs"
        self._judge(step.tokens)
        if self._started is not None:
            seconds, self._started = time.perf_counter() - self._started, None
            self._tokens += len(step.tokens) - self.FORGET * self._tokens
            self._seconds += seconds - self.FORGET * self._seconds
        row = step.path[-1] + 1 if step.path else 0
        self._state = step.scores.hidden([row])[0]

    def _judge(self, tokens: Sequence[int]) -> None:
        """Learn from what came after the pending token, as far as the heads were asked along it."""
        row: int | None = 0
        for depth, (token, level) in enumerate(zip(tokens, self._levels, strict=False)):
            if row is None:
                break
            assert self._weights is not None and self._calibration is not None, "there was a draft"
            found = np.flatnonzero(level.tokens[row] == token)
            right = int(found[0]) if found.size else level.tokens.shape[1]
            order, chances = level.order[row], level.chances[row]
            self._calibration.learn(depth, chances[order], level.steps[row], order == right)
            self._weights.learn(depth, level.evidence[:, row], chances, right)
            if depth:
                self._found.add(bool((order == right).any()))
            following = self._levels[depth + 1].rows if depth + 1 < len(self._levels) else {}
            row = following.get((row, right))
        self._levels = []


def _evidence(said: Candidates, noise: bool) -> Floats:
    """Log-probability and noise of each candidate, and of all other tokens together: [2, rows, k + 1]."""
    logprobs = np.asarray(said.logprobs, np.float64)
    rows, k = logprobs.shape
    evidence = np.zeros((2, rows, k + 1))
    evidence[0, :, :k] = logprobs
    evidence[0, :, k] = np.log(np.maximum(1.0 - np.exp(logprobs).sum(1), LEAST_REST))
    if noise:
        evidence[1, :, :k] = said.noise
        evidence[1, :, k] = MEAN_NOISE if evidence[1].any() else 0.0
    return evidence


@dataclass(frozen=True)
class Speculator(Recipe):
    """Speculator: heads trained on the model's own states guess the next tokens.

    Args:
        tree: "best" for the most probable paths, as many as the budget takes; or a published shape: the children at
            each depth, such as "4x3x2x2" (``top_k_tokens_per_head``); "paths" for whole paths of the 16 best tokens of
            each head; or a list of rank paths, such as "[[0], [0, 0], [1]]", as Medusa's files have it.
        leaves: How many paths of a tree "paths", or such as "4x3x2x2", are drafted.
        width: Most children of a node, and most nodes that a head continues, in the tree "best".
        noise: Whether the seed's noise joins what the heads say under sampling.
        floor: The least probability of a path that is worth a node, in the tree "best". If None, about what one more
            row of a forward costs, and a further head is asked only if that is expected to pay.
    """

    name = "speculator"
    calibrated = True
    needs = frozenset({"hidden"})
    tree: str = BEST
    leaves: int = option(5, least=1)
    width: int = option(WIDTH, least=1)
    noise: bool = True
    floor: float | None = option(None, least=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tree != BEST:
            read_shape(self.tree, self.leaves)

    def check(self, parts: Parts) -> None:
        super().check(parts)
        if parts.heads is None:
            raise RequestError(
                f"The drafter {self.name!r} needs trained heads, and there are none for this model: name their folder "
                "as the speculator, or use another drafter."
            )
        parts.heads()  # which says so if they belong to another model

    def make(self, parts: Parts) -> HeadsDrafter:
        self.check(parts)
        assert parts.heads is not None, "it was checked"
        by_clock = self.tree == BEST and self.floor is None
        return HeadsDrafter(parts.heads(), self._shape(parts), self.noise, by_clock=by_clock)

    def _shape(self, parts: Parts) -> Shape:
        if self.tree != BEST:
            return read_shape(self.tree, self.leaves)
        floor = self.floor
        if floor is None:
            price = parts.costs.row_price()
            floor = FLOOR if price is None else min(FLOOR, max(LEAST_FLOOR, price))
        return BestFirst(floor, self.width if parts.target.supports_trees else 1)
