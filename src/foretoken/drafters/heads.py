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
from typing import TYPE_CHECKING, Any

import numpy as np

from foretoken.core.contracts import Candidates, Heads, Need, Step
from foretoken.core.costs import Median
from foretoken.core.draft import Draft
from foretoken.core.errors import RequestError
from foretoken.drafters.draft_model import Share
from foretoken.drafters.head_trees import BestFirst, Shape, Tree, read_shape
from foretoken.drafters.recipe import Parts, Recipe, option

if TYPE_CHECKING:
    from foretoken.drafters.head_chances import Chances, Level

FLOOR = 0.0285  # about what one more row of a forward costs on a CPU
LEAST_FLOOR = 0.003  # where rows cost nothing: a draft takes time, too
WIDTH = 8
BEST = "best"  # the tree of the most probable paths


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
        self._continued: list[list[tuple[int, int]]] = []  # for each level but the first, what its rows continue
        self._chances: Chances | None = None  # until it is known whether there is noise

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        tree, self._levels, self._continued, self._started = Tree(), [], [], time.perf_counter()
        self._add_level(tree, self.heads.start(self._state, context[-1], len(context)), [-1])
        while len(self._levels) < self.heads.num_heads:
            first, nodes = tree.first, self.shape.continued(tree, len(self._levels), max_tokens)
            if not nodes or (self.by_clock and not self._pays(tree, nodes)):
                break
            started = time.perf_counter()
            order = self._levels[-1].order.tolist()
            places = [divmod(node - first, len(order[0])) for node in nodes]
            rows, candidates = [row for row, _ in places], [order[row][rank] for row, rank in places]
            self._add_level(tree, self.heads.extend(rows, candidates), nodes)
            self._continued.append(list(zip(rows, candidates, strict=True)))
            self._head_seconds.add(time.perf_counter() - started)
        return tree.draft(self.shape.drafted(tree, max_tokens))

    def _pays(self, tree: Tree, nodes: list[int]) -> bool:
        """Whether the next head may bring as many tokens as its time brings otherwise."""
        rate = self._tokens / self._seconds if self._seconds else 0.0
        hope = self._found.value * sum(tree.paths[node] for node in nodes)
        return hope >= rate * self._head_seconds.value

    def _add_level(self, tree: Tree, said: Candidates, nodes: list[int]) -> None:
        """The children of some nodes, of which the heads said this."""
        depth = len(self._levels)
        level = self._learned(said).level(depth, said, self.shape.children(depth))
        self._levels.append(level)
        tree.add(nodes, level.tokens, level.probs)

    def _learned(self, said: Candidates) -> Chances:
        """What is learned of this text, from nothing on at its first draft."""
        if self._chances is None:
            from foretoken.drafters.head_chances import Chances  # only now: numba takes time to import

            num_heads = self.heads.num_heads
            num_ranks = max(self.shape.children(depth) for depth in range(num_heads))
            self._chances = Chances(num_heads, num_ranks, self.noise and bool(np.any(said.noise)))
        return self._chances

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
        row = 0
        for depth, (token, level) in enumerate(zip(tokens, self._levels, strict=False)):
            assert self._chances is not None, "there was a draft"
            came = self._chances.learn(depth, level, row, token)
            if depth:
                self._found.add(came in level.order[row])
            continued = self._continued[depth] if depth < len(self._continued) else []
            if (row, came) not in continued:
                break
            row = continued.index((row, came))
        self._levels = []


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

    def prepare(self) -> None:
        super().prepare()
        from foretoken.drafters.head_chances import compile_levels  # only now: numba takes time to import

        compile_levels()

    def make(self, parts: Parts) -> HeadsDrafter:
        self.check(parts)
        self.prepare()
        assert parts.heads is not None, "it was checked"
        return HeadsDrafter(parts.heads(), self._shape(parts), self.noise, by_clock=self._by_clock)

    @property
    def _by_clock(self) -> bool:
        return self.tree == BEST and self.floor is None

    def _shape(self, parts: Parts) -> Shape:
        if self.tree != BEST:
            return read_shape(self.tree, self.leaves)
        floor = self.floor
        if floor is None:
            price = parts.costs.row_price()
            floor = FLOOR if price is None else min(FLOOR, max(LEAST_FLOOR, price))
        return BestFirst(floor, self.width if parts.target.supports_trees else 1)
