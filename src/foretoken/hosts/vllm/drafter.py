"""The class that vLLM asks for drafts: all rows of a step at once, for no more rows than the batch's budget allows."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from foretoken.drafters.ngram import CHAIN_FLOOR
from foretoken.hosts.vllm.budget import BatchBudget
from foretoken.hosts.vllm.sampling_fix import correct_sampling
from foretoken.hosts.vllm.settings import Settings, let_ask_to_the_end
from foretoken.hosts.vllm.states import RowFacts, States
from foretoken.memory.namespace import Namespace
from foretoken.ngrams.arrays import Floats, Ints

_NOTHING = np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 1), np.float32)  # of no row


class Drafter:
    """The n-gram core as a proposer of vLLM's ``custom_class``.

    Attributes:
        namespace: Whose memory requests share of which nothing else is said.
        clock: What steps are timed by, from one ``propose`` to the next.

    Args:
        vllm_config: vLLM's ``VllmConfig``.

    Raises:
        ForetokenError: If this vLLM is none that was tested, or the number of tokens is none that it verifies.
    """

    def __init__(self, vllm_config: Any) -> None:
        self.settings = Settings.of(vllm_config)
        let_ask_to_the_end(vllm_config)
        self.namespace = Namespace("default")
        self.states = States(self.settings.max_requests, self.settings.max_draft, self.namespace)
        self.budget = BatchBudget()
        self.step = Step(None, *_NOTHING)  # the one that runs now
        self._rest = Rest()
        self._facts: RowFacts | None = None
        self.clock = time.thread_time if self.settings.is_one_thread else time.perf_counter

    def load_model(self, model: Any, *args: Any, **kwargs: Any) -> None:
        """Compile the loops before the first request; vLLM calls it with the target model."""
        correct_sampling()
        room = States(1, self.settings.max_draft, Namespace())
        texts, one = np.zeros((1, 8), np.int32), np.ones(1, np.int32)
        for length in (4, 5):
            room.follow(texts, np.full(1, length, np.int32), one)
            room.learn(texts)
        room.draft(texts, one, CHAIN_FLOOR)

    def describe(self, facts: RowFacts) -> None:
        """Say what the hook is not told of the rows of the next ``propose``; see ``states.py``."""
        self._facts = facts

    def end(self, ids: Iterable[str]) -> None:
        """Say that requests have ended."""
        self.states.end(ids)

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: Ints,
        token_ids_cpu: Ints,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """What vLLM verifies in its next step.

        Args:
            sampled_token_ids: The tokens that the last step committed, of each row; none of a row whose prompt is not
                read to its end.
            num_tokens_no_spec: int32 [rows or more], the length of each row's text, these tokens with it.
            token_ids_cpu: int32 [rows or more, any], the texts.
            slot_mappings: Where vLLM's cache has them; not used.

        Returns:
            A chain for each row, empty where drafting does not pay.
        """
        started = self.clock()
        num, facts = len(sampled_token_ids), self._facts
        self._facts = None
        num_new = np.fromiter(map(len, sampled_token_ids), np.int32, num)
        lengths = num_tokens_no_spec[:num]
        if self._rest.goes_on(num_new, lengths):
            self.step.end(started, self.step.slots, num_new, self.budget)
            self.step.started = started
            return [[] for _ in range(num)]
        self.states.follow(token_ids_cpu, lengths, self._rest.end(num_new, lengths), facts)
        self._rest = Rest()
        self.states.learn(token_ids_cpu)
        num_decoding = int(np.count_nonzero(num_new))
        is_pure = num_decoding == num and not self.states.is_new
        if is_pure:
            self.step.end(started, self.states.slots, num_new, self.budget)
        room = self.settings.max_length - lengths - 1
        most = np.clip(room, 0, self.settings.max_draft).astype(np.int32)
        most[num_new == 0] = 0
        if facts is not None:
            most = np.minimum(most, np.array(facts.limits, np.int32))
        chosen = np.zeros(num, np.int32)
        is_asked = num_decoding > 0 and self.budget.allows(num_decoding)
        if is_asked:
            floor = max(CHAIN_FLOOR, self.budget.floor(num_decoding, max(1, int(most.sum()))))
            if floor < 1:
                self.guess(token_ids_cpu, most, floor)
                chosen = self.budget.choose(self.states.paths[:num], num_decoding)
        if is_pure and not chosen.any():
            self._rest = Rest(self.budget.rest(num, is_asked), lengths)
        self.step = Step(started if num_decoding == num else None, self.states.slots, chosen, self.states.paths[:num])
        tokens = self.states.tokens[:num].tolist()
        return [tokens[row][:n] for row, n in enumerate(chosen.tolist())]

    def guess(self, texts: Ints, most: Ints, floor: float) -> None:
        """Draft for the rows of the step, into the ``tokens`` and ``paths`` of ``states``.

        Args:
            texts: As ``token_ids_cpu``.
            most: int32 [rows], the most tokens of each row's draft; filled in with how many there are.
            floor: The least path probability that is worth a row.
        """
        self.states.draft(texts, most, floor)


class Rest:
    """Steps in which nothing is drafted and nothing learned, since that would not pay: the next one learns for them.

    Args:
        num_steps: How many; fewer if the requests change.
        lengths: int32 [rows], the length of each row's text then.
    """

    def __init__(self, num_steps: int = 0, lengths: Ints | None = None) -> None:
        self.num_steps = num_steps
        self._lengths = np.zeros(0, np.int32) if lengths is None else lengths.copy()
        self._num_unseen = np.zeros_like(self._lengths)  # tokens of each row

    def _are_same(self, num_new: Ints, lengths: Ints) -> bool:
        """Whether all rows were decoded, and are the same as before as far as lengths tell."""
        same = len(lengths) == len(self._lengths) and bool(np.all(lengths == self._lengths + num_new))
        return same and bool(np.all(num_new > 0))

    def goes_on(self, num_new: Ints, lengths: Ints) -> bool:
        """Whether this step is one of them."""
        if self.num_steps <= 0 or not self._are_same(num_new, lengths):
            return False
        self.num_steps -= 1
        self._lengths += num_new
        self._num_unseen += num_new
        return True

    def end(self, num_new: Ints, lengths: Ints) -> Ints:
        """How many tokens of each row are new, with those of the steps that have passed."""
        return num_new + self._num_unseen if self._are_same(num_new, lengths) else num_new


class Step:
    """What is known of a step before it runs.

    Attributes:
        started: When drafting for it began; None if its time says nothing.
        slots: int32 [rows], which requests it was drafted for.
        num_drafted: How many tokens it verifies.

    Args:
        started: When drafting for it began. If None, it reads prompts besides, and its time says nothing.
        slots: int32 [rows], which requests it was drafted for.
        num_drafted: int32 [rows].
        paths: float32 [rows, any], how likely each token and all before it are right.
    """

    def __init__(self, started: float | None, slots: Ints, num_drafted: Ints, paths: Floats) -> None:
        self.started, self.slots, self._num_drafted = started, slots, num_drafted
        self.num_drafted = int(num_drafted.sum())
        self._promised = np.where(np.arange(paths.shape[1]) < num_drafted[:, None], paths, 0).sum(axis=1)

    def end(self, ended: float, slots: Ints, num_new: Ints, budget: BatchBudget) -> None:
        """It decoded these requests, which are those from before without the ones that had ended by then.

        Args:
            ended: When.
            slots: int32 [rows].
            num_new: int32 [rows], how many tokens of each it has committed.
            budget: What learns from that.
        """
        if self.started is not None:
            stayed = np.isin(self.slots, slots)
            num_drafted, promised = int(self._num_drafted[stayed].sum()), float(self._promised[stayed].sum())
            budget.observe(len(slots), num_drafted, ended - self.started, promised, int(num_new.sum()) - len(slots))
