"""The drafter within our worker: it knows the requests by their names and options, and what the target's head read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretoken.drafters.mixed import Arms
from foretoken.hosts.vllm.drafter import Drafter
from foretoken.hosts.vllm.options import EngineOptions
from foretoken.hosts.vllm.requests import Requests, namespaces_of
from foretoken.ngrams.arrays import Ints

MARGIN = 1.1  # by which heads must raise the tokens of a second: of a few steps, that is a noisy number
SURE = 0.7  # chance of the n-grams' first token from which on heads are not asked for a row


@dataclass(frozen=True)
class Forward:
    """What a forward of the target left.

    Args:
        names: The requests of its rows.
        states: [logits, width], what the target's output head read.
        num_logits: How many of these belong to each request: its last token's, and its draft's.
    """

    names: Sequence[str]
    states: Any
    num_logits: Sequence[int]


class InformedDrafter(Drafter):
    """The n-gram core with a memory for each namespace, and trained heads where there are some.

    Attributes:
        requests: Those that run.

    Args:
        vllm_config: vLLM's ``VllmConfig``.

    Raises:
        ForetokenError: As ``Drafter``, or if an option is wrong.
    """

    def __init__(self, vllm_config: Any) -> None:
        super().__init__(vllm_config)
        self._options = EngineOptions.read(vllm_config.additional_config)
        self._model_config = vllm_config.model_config
        namespaces = namespaces_of(self._options, vllm_config.model_config)
        self.requests = Requests(self._options, namespaces, self.settings.max_draft)
        self._heads: Any = None
        self._arms = Arms(MARGIN)  # whether asking them gives more tokens a second
        self._chosen: bool | None = None  # what was chosen for the last step; None if there was nothing to choose
        self._started = 0.0
        self._asked: list[str] = []  # the requests that the heads last guessed for
        self._forward: Forward | None = None
        self._sampled: list[list[int]] = []
        self._is_heard = True

    def load_model(self, model: Any, *args: Any, **kwargs: Any) -> None:
        from vllm.distributed.parallel_state import get_tp_group

        super().load_model(model, *args, **kwargs)
        self._is_heard = get_tp_group().rank_in_group == 0  # of ranks that share a model vLLM asks the first alone
        if self._options.speculator is not None:
            from foretoken.hosts.vllm.heads import load_heads

            device = next(model.parameters()).device
            self._heads = load_heads(
                self._options.speculator, model, self._model_config, device, self.settings.max_draft
            )

    def follow(self, new: Sequence[Any], ended: Sequence[str]) -> None:
        """What the scheduler says before a step.

        Args:
            new: vLLM's ``NewRequestData`` of each request that it schedules for the first time.
            ended: Names of those that have ended.
        """
        self.end(ended)
        self.requests.end(ended)
        for one in new:
            self.requests.begin(one.req_id, one.sampling_params)

    def inform(self, forward: Forward) -> None:
        """What the forward left on which the next ``propose`` goes."""
        if self._forward is not None:  # near the end of a context vLLM takes a step without asking for drafts
            self._asked = []
        self.describe(self.requests.facts(forward.names))
        self._forward = forward

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: Ints,
        token_ids_cpu: Ints,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        if not self._is_heard:
            return [[] for _ in sampled_token_ids]
        now = self.clock()
        if self._chosen is not None and all(sampled_token_ids):
            self._arms.add(self._chosen, sum(map(len, sampled_token_ids)), now - self._started)
        self._chosen, self._started = None, now
        self._sampled = sampled_token_ids
        if self._heads is not None and self._forward is not None:
            came = dict(zip(self._forward.names, sampled_token_ids, strict=True))
            self._heads.learn([came.get(name, []) for name in self._asked])
        self._asked = []
        drafts = super().propose(sampled_token_ids, num_tokens_no_spec, token_ids_cpu, slot_mappings)
        self._forward = None
        return drafts

    def guess(self, texts: Ints, most: Ints, floor: float) -> None:
        allowed = most.copy()
        super().guess(texts, most, floor)
        if self._heads is None or self._forward is None:
            return
        rows = np.flatnonzero((allowed > 0) & (self.states.paths[: len(allowed), 0] < SURE)).tolist()
        if not rows:
            return
        self._chosen = self._arms.choose()
        if not self._chosen:
            return
        names = [self._forward.names[row] for row in rows]
        known = self.requests.of(names)
        ends = np.cumsum([0, *self._forward.num_logits])[rows] + [len(self._sampled[row]) - 1 for row in rows]
        tokens, paths = self._heads.guess(
            self._forward.states[ends],
            [self._sampled[row][-1] for row in rows],
            [one.temperature for one in known],
            [one.namespace for one in known],
            floor,
        )
        self._asked = names
        num = tokens.shape[1]
        paths[np.arange(num) >= allowed[rows][:, None]] = 0
        paths[paths < floor] = 0
        better = paths.sum(1) > self.states.paths[rows].sum(1)
        for row, line, path in zip(np.array(rows)[better], tokens[better], paths[better], strict=True):
            most[row] = np.count_nonzero(path)
            self.states.tokens[row, :num] = line
            self.states.paths[row, :num], self.states.paths[row, num:] = path, 0
