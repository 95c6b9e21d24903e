"""What is known of each request that vLLM decodes: arrays with a slot for each, found again wherever its row moves.

**What a worker class may add.** vLLM's hook for drafters is told tokens and nothing else. So a request is known by its
text: its length, and the tokens at either end. It has ended if it was not seen for a while. A worker class knows more
and says so through the drafter:

- ``drafter.describe(RowFacts(ids, namespaces, limits))`` before each ``propose``, with an entry for each row of that
  call. A slot then goes by the id, the row shares what its namespace remembers, and its draft has at most that limit.
- ``drafter.end(ids)`` as soon as requests have ended: their answers are remembered and their slots are free.

Without either, all rows share one namespace, and none has a limit of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretoken.hosts.vllm.memories import Memories
from foretoken.memory.namespace import Namespace
from foretoken.ngrams import arrays
from foretoken.ngrams.arrays import Ints
from foretoken.ngrams.store import TokenStore

MAX_AGE = 64  # steps that a request may be away, as one that is preempted is, before its slot is freed
AWAY = 2  # steps after which what it has said so far is remembered
COUNTED = 4096  # tokens of prompts that are counted in a step, of all rows together: about a millisecond
STORE_MAX_BYTES = 64 * 2**20  # of one request: some half a million tokens
RATE = 0.01  # at which the mixer learns, as in drafters/ngram.py
EDGE = 64  # tokens at either end that tell texts apart


@dataclass(frozen=True)
class RowFacts:
    """What a worker class knows of the rows of one step.

    Args:
        ids: The requests' names.
        namespaces: Whose memory each shares.
        limits: The most tokens of each row's draft. A row of limit 0 is not looked at, and nothing of it is remembered.
    """

    ids: Sequence[str]
    namespaces: Sequence[Namespace]
    limits: Sequence[int]


class States:
    """A slot for each request.

    Attributes:
        slots: int32 [rows], of the step's rows; -1 for one that is left out.
        is_new: Whether some row of the step was not known before.
        tokens: int32 [most rows, most tokens], the drafts of the step.
        paths: float32 [most rows, most tokens], how likely each drafted token and all before it are right.

    Args:
        max_rows: The most rows of a step.
        max_draft: The most tokens of a draft.
        namespace: Whose memory a row shares of which nothing is said.
    """

    def __init__(self, max_rows: int, max_draft: int, namespace: Namespace) -> None:
        num = 2 * max_rows  # as many may be away as are here
        self._namespace = namespace
        self._step = 0
        self._is_used = np.zeros(num, np.bool_)
        self._known, self._counted = np.zeros(num, np.int32), np.zeros(num, np.int32)  # tokens
        self._learn_after = np.zeros(num, np.int32)  # these tokens are a prompt, and only counted
        self._remembered = np.zeros(num, np.int32)  # these are a prompt, or in the memory already
        self._seen = np.zeros(num, np.int64)  # the last step
        self._heads, self._tails = np.zeros((num, EDGE), np.int32), np.zeros((num, EDGE), np.int32)
        self._last = np.full(max_rows, -1, np.int32)  # each row's slot in the last step
        self._stores: list[TokenStore | None] = [None] * num
        self._addresses = np.zeros((num, arrays.TRIE_COLUMNS), np.int64)
        self._ids: list[str | None] = [None] * num
        self._slot_of_id: dict[str, int] = {}
        self._memories, self._memory_of = Memories(), np.zeros(num, np.int32)
        self._window = np.zeros(arrays.WINDOW, np.int32)
        self._room = (*arrays.NOTHING_RECYCLED, *arrays.room_for_votes(), *arrays.room_for_growth(max_draft))
        self.tokens, self.paths = np.zeros((max_rows, max_draft), np.int32), np.zeros((max_rows, max_draft), np.float32)
        self.slots, self.is_new = np.zeros(0, np.int32), False

    def __len__(self) -> int:
        """Slots in use."""
        return int(np.count_nonzero(self._is_used))

    @property
    def nbytes(self) -> int:
        """Bytes of the requests' statistics."""
        return sum(store.nbytes for store in self._stores if store is not None)

    def follow(self, texts: Ints, lengths: Ints, num_new: Ints, facts: RowFacts | None = None) -> None:
        """Find the slot of each row of a step, and free those of requests that have long been away.

        Args:
            texts: int32 [rows or more, any], vLLM's matrix of token ids.
            lengths: int32 [rows], how many of them are committed.
            num_new: int32 [rows], how many of these the step has committed; 0 where a part of a prompt was read.
            facts: What a worker class knows.
        """
        from foretoken.hosts.vllm import following

        self._step += 1
        num, before = len(lengths), lengths - num_new
        self.slots = np.full(num, -1, np.int32)
        taken = np.zeros(len(self._known), np.uint8)
        if facts is None:
            ends = self._known, self._heads, self._tails
            following.follow(texts, before, self._last, *ends, taken, self.slots)
            missing = np.flatnonzero(self.slots < 0).tolist()
        else:
            self.slots[:] = [self._slot_of_id.get(name, -1) for name in facts.ids]
            taken[self.slots[self.slots >= 0]] = 1
            missing = [row for row in range(num) if self.slots[row] < 0 and facts.limits[row] > 0]
        self.is_new = bool(missing)
        for row in missing:
            self.slots[row] = slot = self._free_slot(taken)
            taken[slot] = 1
            name, namespace = (facts.ids[row], facts.namespaces[row]) if facts else (None, self._namespace)
            self._begin(slot, int(before[row]), name, namespace)
        self._go_on(before, has_names=facts is not None)
        following.note(texts, self.slots, lengths, self._known, self._heads, self._tails)
        self._last[:num], self._last[num:] = self.slots, -1
        self._look_after_those_away()

    def _begin(self, slot: int, num_prompt: int, name: str | None, namespace: Namespace) -> None:
        """A request that was not known."""
        self._stores[slot] = store = TokenStore(num_prompt + 512, STORE_MAX_BYTES)
        self._addresses[slot] = arrays.addresses_of(*store.trie)
        self._is_used[slot] = True
        self._known[slot] = self._counted[slot] = 0
        self._memory_of[slot] = self._memories.take(namespace)
        self._ids[slot] = name
        if name is not None:
            self._slot_of_id[name] = slot

    def _free_slot(self, taken: NDArray[np.uint8]) -> int:
        """If need be that of the request which has been away for longest."""
        if not self._is_used.all():
            return int(np.argmin(self._is_used))
        slot = int(np.argmin(np.where(taken, self._step, self._seen)))
        self._end(slot)
        return slot

    def _go_on(self, before: Ints, has_names: bool) -> None:
        """What a request had before, and we have not seen, is a prompt: its own, or a longer one of the next turn.

        Where requests have names, what one that is known had meanwhile was decoded in steps that we were not told of.
        """
        rows = np.flatnonzero(self.slots >= 0)
        slots = self.slots[rows]
        self._seen[slots] = self._step
        behind = before[rows] > (np.where(self._known[slots] > 0, before[rows], 0) if has_names else self._known[slots])
        for slot, num in zip(slots[behind].tolist(), before[rows][behind].tolist(), strict=True):
            if self._counted[slot] > 0:
                self._remember(slot)
            self._learn_after[slot] = self._remembered[slot] = num

    def _look_after_those_away(self) -> None:
        away = np.where(self._is_used, self._step - self._seen, 0)
        for slot in np.flatnonzero((away >= AWAY) & (self._remembered < self._known)).tolist():
            self._remember(slot)
        for slot in np.flatnonzero(away >= MAX_AGE).tolist():
            self._end(slot)

    def _remember(self, slot: int) -> None:
        """Add what was decoded of a request since it was last done to the memory of its namespace."""
        store = self._stores[slot]
        assert store is not None
        num = min(int(self._counted[slot]) - int(self._remembered[slot]), store.num_tokens)
        if num > 0:
            answer = store.trie.tokens[store.num_tokens - num : store.num_tokens].copy()
            self._memories.namespace(int(self._memory_of[slot])).keep(answer.tolist())
        self._remembered[slot] = max(self._remembered[slot], self._known[slot])

    def _end(self, slot: int) -> None:
        self._remember(slot)
        self._is_used[slot], self._known[slot], self._stores[slot] = False, 0, None
        name, self._ids[slot] = self._ids[slot], None
        if name is not None:
            del self._slot_of_id[name]
        self._memories.give_back(int(self._memory_of[slot]))
        self._last[self._last == slot] = -1

    def end(self, ids: Iterable[str]) -> None:
        """These requests have ended."""
        for name in ids:
            slot = self._slot_of_id.get(name)
            if slot is not None:
                self._end(slot)

    def learn(self, texts: Ints) -> None:
        """Count what is new in the texts of the step, prompts piece by piece, and learn from what was decoded."""
        from foretoken.ngrams import batch

        allowance = np.array([COUNTED], np.int32)
        while True:
            frozen = self._memories.refresh()
            row = batch.learn_rows(
                self.slots, self._memory_of, texts, self._known, self._counted, self._learn_after, self._addresses,
                self._memories.addresses, RATE, allowance, self._window, *frozen, *self._room,
            )  # fmt: skip
            if row == len(self.slots):
                return
            slot = int(self.slots[row])
            store = self._stores[slot]
            assert store is not None
            if store.is_full:
                store.make_room(int(self._known[slot] - self._counted[slot]))
                self._addresses[slot] = arrays.addresses_of(*store.trie)
            else:
                ngrams = self._memories.ngrams(int(self._memory_of[slot]))
                with ngrams.lock:
                    ngrams.make_room_to_learn()

    def draft(self, texts: Ints, most: Ints, floor: float) -> None:
        """Draft for the rows of the step, into ``tokens`` and ``paths``.

        Args:
            texts: As in ``follow``.
            most: int32 [rows], the most tokens of each row's draft; filled in with how many there are.
            floor: The least probability of a path that is worth a row of a forward.
        """
        from foretoken.ngrams import batch

        frozen = self._memories.refresh()
        batch.draft_rows(
            self.slots, self._memory_of, texts, self._known, self._counted, most, floor, self._addresses,
            self._memories.addresses, self.tokens, self.paths, self._window, *frozen, *self._room,
        )  # fmt: skip
