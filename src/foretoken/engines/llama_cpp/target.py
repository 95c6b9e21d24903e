"""Driven: our loop over a GGUF model, chains and trees, so that no row's bits depend on what was drafted.

llama.cpp computes a row in several ways, by how many rows a forward has. So forwards are filled up to numbers of rows
that give a row the same bits. From 64 rows on flash attention goes another way, so that no forward has so many. In the
cache, the order of the cells decides the order of sums. So the main chain of a tree stands first in a forward, and only
that stays in its cells: what was accepted beside it is read again, as the first rows of the next forward, and lies
where plain decoding would have put it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretoken.core.contracts import Need, Scores, Top
from foretoken.core.draft import Draft
from foretoken.core.errors import RequestError
from foretoken.engines.llama_cpp.choice import Choice, argmax
from foretoken.engines.llama_cpp.context import ALL, BATCH, BRANCHES, MAIN, PAD, Contexts, Row
from foretoken.ngrams.likeliest import likeliest

PADDING = (PAD,)
MOST_ROWS = 32  # of a forward that decodes
NOTHING = np.empty((0, 0), np.float32)
EVERY_WIDTH = range(1, MOST_ROWS + 1)


class LlamaCppTarget:
    """A GGUF model, a context of its own, and one sequence.

    Args:
        contexts: Gives the context.
        choice: How tokens are chosen.
        widths: The numbers of rows that forwards are filled up to, rising, but for the prompt's.
        trees: Whether drafts with branches are scored; see ``exact``.
    """

    provides: frozenset[Need] = frozenset({"top", "runner_up", "hidden", "logprobs", "row_logits"})

    def __init__(
        self, contexts: Contexts, choice: Choice | None = None, widths: Sequence[int] = EVERY_WIDTH, trees: bool = True
    ) -> None:
        self.choice, self.widths, self.supports_trees = choice or Choice(), widths, trees
        self.max_length = contexts.settings.length
        self._context = contexts.take(self)
        self.clock = time.thread_time if contexts.settings.runs_here else time.perf_counter
        self._tokens: list[int] = []  # committed
        self._read = 0  # how many of them are in the cache: what was accepted off the main chain is read again
        self._draft: Draft | None = None  # what the last score read, until keep
        self._main: list[int] = []  # its nodes in the main sequence
        self._num_branches = 0  # the sequences of its other nodes
        self._shows_states = False  # whether the scores will be asked for what the output head read
        self._states = NOTHING  # of the last forward's rows

    @property
    def num_cached(self) -> int:
        """How many tokens the cache holds."""
        return self._read

    @property
    def max_draft_depth(self) -> int:
        return max(0, self.max_length - len(self._tokens) - 1)

    def expect(self, needs: frozenset[Need]) -> None:
        """The scores will be asked for these."""
        self._shows_states = "hidden" in needs

    def prefill(self, prompt: Sequence[int]) -> LlamaCppScores:
        if len(prompt) > self.max_length:
            raise RequestError(f"The prompt has {len(prompt)} tokens, and the context takes {self.max_length}.")
        self._context.clear()
        self._draft, self._tokens = None, list(prompt)
        self._context.show_states(False)
        *before, last = prompt
        for start in range(0, len(before), BATCH):
            chunk = before[start : start + BATCH]
            self._context.forward([Row(token, start + i, wanted=False) for i, token in enumerate(chunk)])
        # The last token is read as plain steps are: where states are shown every row has some, and rows that have are
        # computed in another way.
        self._context.show_states(self._shows_states)
        logits = self._forward([Row(last, len(before))])
        self._read = len(prompt)
        return LlamaCppScores(self, logits, Draft())

    def score(self, last_token: int, draft: Draft) -> LlamaCppScores:
        if self._draft is not None:
            raise RuntimeError("keep must follow score")
        start = len(self._tokens)
        beside, leaves = self._branches(draft)
        if len(leaves) > BRANCHES:
            raise RequestError(
                f"A draft has {len(leaves)} branches, and a forward takes {BRANCHES}: use a smaller budget."
            )
        sequences: list[list[int]] = [[] for _ in draft.tokens]
        for sequence, leaf in enumerate(leaves, start=1):
            self._context.branch(sequence)
            for node in draft.ancestors(leaf):
                sequences[node].append(sequence)
        every = range(len(leaves) + 1)
        again = self._tokens[self._read :]
        rows = [Row(token, self._read + i, every) for i, token in enumerate(again)]
        rows.append(Row(last_token, start, every))
        rows += [Row(draft.tokens[node], start + draft.depths[node], (MAIN, *sequences[node])) for node in self._main]
        rows += [Row(draft.tokens[node], start + draft.depths[node], sequences[node]) for node in beside]
        try:
            logits = self._forward(rows)[len(again) :]
            self._states = self._states[len(again) :]
        except BaseException:
            self._context.drop(PAD)
            self._context.drop(ALL, self._read)
            raise
        self._tokens.append(last_token)
        self._draft, self._num_branches = draft, len(leaves)
        if not beside:
            return LlamaCppScores(self, logits, draft)
        order = [0, *(1 + place for place in np.argsort([*self._main, *beside]).tolist())]
        return LlamaCppScores(self, logits, draft, order)

    def _branches(self, draft: Draft) -> tuple[list[int], list[int]]:
        """The nodes off the main chain, which is kept in mind, and those of them that nothing follows."""
        if draft.is_chain:
            self._main = list(range(len(draft)))
            return [], []
        self._main = draft.main_nodes()
        main, inner = set(self._main), set(draft.parents)
        beside = [node for node in range(len(draft)) if node not in main]
        return beside, [node for node in beside if node not in inner]

    def _forward(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """The logits of the rows, in forwards that have one of the widths."""
        parts: list[NDArray[np.float32]] = []  # to call such a type, as in list[...](), takes as long as a choice
        num_padding, states = 0, [NOTHING]
        for start in range(0, len(rows), MOST_ROWS):
            part = rows[start : start + MOST_ROWS]
            width = next(width for width in self.widths if width >= len(part))
            # They are wanted, too: the last layer and the output head compute nothing for rows that are not.
            padding = [Row(part[0].token, num_padding + i, PADDING) for i in range(width - len(part))]
            num_padding += len(padding)
            parts.append(self._context.forward([*part, *padding])[: len(part)])
            if self._shows_states:
                states.append(self._context.states(len(part)))
            if len(rows) > MOST_ROWS:
                parts[-1] = parts[-1].copy()  # the next forward writes over it
        if num_padding:
            self._context.drop(PAD)
        self._states = states[-1] if len(states) < 3 else np.concatenate(states[1:])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def keep(self, path: Sequence[int]) -> None:
        if self._draft is None:
            return
        on_main = next((i for i, node in enumerate(path) if i >= len(self._main) or node != self._main[i]), len(path))
        self._read = len(self._tokens) + on_main
        for branch in range(1, 1 + self._num_branches):
            self._context.drop(branch, len(self._tokens))
        if on_main < len(self._main):
            self._context.drop(MAIN, self._read)
        self._tokens += [self._draft.tokens[node] for node in path]
        self._draft = None

    def rewind(self, num_tokens: int) -> None:
        """Leave only the first so many tokens; what was scored and not kept goes too."""
        self.keep(())
        self._tokens = self._tokens[:num_tokens]
        self._read = min(self._read, num_tokens)
        self._context.drop(ALL, self._read)


class LlamaCppScores(Scores):
    """Logits of a forward, which hold until the next one.

    Args:
        target: Whose they are.
        logits: float32 [rows, vocab].
        draft: What the rows after the first one read.
        order: Where in ``logits`` row 0 is, and each node. If None, in their own order.
    """

    def __init__(
        self, target: LlamaCppTarget, logits: NDArray[np.float32], draft: Draft, order: Sequence[int] | None = None
    ) -> None:
        self._choice, self._logits, self._states, self._draft = target.choice, logits, target._states, draft
        self._order = range(len(logits)) if order is None else order
        self._tokens, self._length = target._tokens, len(target._tokens)  # up to row 0; keep makes them longer
        self._scores: dict[int, NDArray[np.float64]] = {}  # of rows whose choice was not the logits' argmax
        self._chosen: dict[int, int] = {}

    def row_logits(self, row: int) -> NDArray[np.float32]:
        """The logits after a row, float32 [vocab], until the next forward."""
        logits: NDArray[np.float32] = self._logits[self._order[row]]
        return logits

    def choose(self, row: int) -> int:
        if row not in self._chosen:
            logits = self.row_logits(row)
            if self._choice.is_argmax:
                self._chosen[row] = argmax(logits)
            else:
                path = self._draft.path(row - 1)
                self._scores[row] = self._choice.scores([*self._tokens[: self._length], *path], logits)
                self._chosen[row] = self._choice.best(self._scores[row], self._length + len(path))
        return self._chosen[row]

    def hidden(self, rows: Sequence[int]) -> Any:
        """What the output head read after some rows: a tensor of torch, as heads read it."""
        import torch

        return torch.from_numpy(self._states[[self._order[row] for row in rows]])

    def runner_up(self, row: int) -> tuple[int, float]:
        chosen = self.choose(row)
        others = self._scores.get(row, self.row_logits(row)).astype(np.float64)
        if row in self._scores:
            others = self._choice.perturbed(others, self._length + len(self._draft.path(row - 1)))
        best, others[chosen] = others[chosen], -np.inf
        second = int(others.argmax())
        return second, float(best - others[second])

    def top(self, rows: Sequence[int], k: int) -> Top:
        tokens, logprobs = likeliest(self._logits[[self._order[row] for row in rows]], k)
        return Top(tokens, np.exp(logprobs))

    def logprobs(self, row: int) -> NDArray[np.float64]:
        logits = self.row_logits(row).astype(np.float64)
        logits -= logits.max()
        logprobs: NDArray[np.float64] = logits - np.log(np.exp(logits).sum())
        return logprobs
