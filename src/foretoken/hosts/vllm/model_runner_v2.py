"""Our drafter within vLLM's newer model runner, whose drafts stay on the GPU and have a fixed width.

``speculative_config={"method": "ngram", "model": "foretoken.hosts.vllm.model_runner_v2.ForetokenSpeculator",
"num_speculative_tokens": 8}``: the plugin puts it in, and the method is one that vLLM's config knows.

The n-gram core needs the new tokens in the memory of a CPU, so each step waits once for the GPU. How many tokens of a
draft are verified is vLLM's choice: with ``enable_adaptive_verification`` it goes by our chances and by costs that it
measures itself. Without, every draft is verified in its full width.

Written against the sources of vLLM 0.32. Unit tests run it on tensors of a CPU, with a stand-in for the runner. It has
never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.distributed.parallel_state import get_tp_group
from vllm.utils.gpu_sync_debug import gpu_sync_allowed
from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator

from foretoken.core.errors import ModelError
from foretoken.drafters.ngram import LEAST_FLOOR
from foretoken.hosts.vllm.options import EngineOptions
from foretoken.hosts.vllm.requests import Requests, namespaces_of
from foretoken.hosts.vllm.settings import Settings
from foretoken.hosts.vllm.states import RowFacts, States
from foretoken.ngrams.arrays import Ints


class ForetokenSpeculator(BaseSpeculator):  # type: ignore[misc]
    """The n-gram core with a memory for each namespace.

    Attributes:
        requests: Those that run.
        draft_token_confidence_probs: float32 [requests, K], how likely each drafted token is right if those before it
            are; 0 where nothing is guessed.
        enable_adaptive_verification: Whether vLLM trims drafts by these.

    Args:
        vllm_config: vLLM's ``VllmConfig``.
        device: Where the target runs.
        req_states: The runner's ``RequestState``.

    Raises:
        ForetokenError: If this vLLM is none that was tested, or the engine asks for what is not done here.
    """

    supports_mm_inputs = False
    draft_logits = None

    def __init__(self, vllm_config: Any, device: torch.device, req_states: Any) -> None:
        self.settings = Settings.of(vllm_config)
        options = EngineOptions.read(vllm_config.additional_config)
        if options.speculator is not None or getattr(vllm_config, "watermark_config", None) is not None:
            raise ModelError(
                "Trained heads and watermarks are not done in vLLM's newer model runner: leave out the speculator and "
                "the watermark, or give the method custom_class."
            )
        namespaces = namespaces_of(options, vllm_config.model_config)
        self.requests = Requests(options, namespaces, self.settings.max_draft)
        most, width = self.settings.max_requests, self.settings.max_draft
        self._nobody = namespaces.of(None)
        self._states = States(most, width, self._nobody)
        self._req_states, self._device, self._group = req_states, device, get_tp_group()
        self._texts = np.zeros((most, self.settings.max_length), np.int32)  # by the runner's place of each request
        self._places: dict[str, int] = {}  # whose texts these are
        self._host_drafts = torch.zeros((most, width), dtype=torch.int64)
        self._host_probs = torch.zeros((most, width))
        if device.type == "cuda":
            self._host_drafts, self._host_probs = self._host_drafts.pin_memory(), self._host_probs.pin_memory()
        self._drafts = self._host_drafts.to(device, copy=True)
        self.draft_token_confidence_probs = self._host_probs.to(device, copy=True)
        self.enable_adaptive_verification = bool(vllm_config.speculative_config.enable_adaptive_verification)

    def init_cudagraph_manager(self, cudagraph_mode: Any) -> None:
        """Nothing of ours is in a CUDA graph."""

    def capture(self) -> None:
        """The same."""

    def follow(self, new: Sequence[Any], ended: Sequence[str]) -> None:
        """What the scheduler says before a step; our worker calls it.

        Args:
            new: vLLM's ``NewRequestData`` of each request that it schedules for the first time, or again after it was
                preempted.
            ended: Names of those that have ended.
        """
        self._end(ended)
        for one in new:
            self.requests.begin(one.req_id, one.sampling_params)
            self._places.pop(one.req_id, None)

    @torch.inference_mode()
    def propose(
        self,
        input_batch: Any,
        attn_metadata: Any,
        slot_mappings: Any,
        last_hidden_states: Tensor,
        aux_hidden_states: list[Tensor] | None,
        num_sampled: Tensor,
        num_rejected: Tensor,
        last_sampled: Tensor,
        next_prefill_tokens: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        dp_sync_state: Any = None,
        dummy_run: bool = False,
        skip_attn_for_dummy_run: bool = False,
        mm_inputs: Any = None,
        is_profile: bool = False,
        num_speculative_tokens: int | None = None,
    ) -> Tensor:
        """The drafts of a batch, int64 [requests, K]; vLLM's ``BaseSpeculator`` has the arguments."""
        num = input_batch.num_reqs
        if dummy_run:
            return self._drafts[:num]
        if self._group.rank_in_group == 0:
            with gpu_sync_allowed():
                lengths, num_new = self._read(input_batch, num_sampled)
            width = self.settings.max_draft if num_speculative_tokens is None else num_speculative_tokens
            self._guess(input_batch.req_ids, input_batch.idx_mapping_np, lengths, num_new, width)
            self._drafts[:num].copy_(self._host_drafts[:num], non_blocking=True)
            self.draft_token_confidence_probs[:num].copy_(self._host_probs[:num], non_blocking=True)
        if self._group.world_size > 1:  # ranks that share a model must verify the same drafts
            self._group.broadcast(self._drafts, src=0)
            self._group.broadcast(self.draft_token_confidence_probs, src=0)
        return self._drafts[:num]

    def _read(self, input_batch: Any, num_sampled: Tensor) -> tuple[Ints, Ints]:
        """Bring the texts of a batch up to date, with one wait for the GPU and one for each new request.

        Returns:
            The length of each row's text, and how many of its tokens are new, int32 [requests].
        """
        running, places = self._req_states.req_id_to_index, input_batch.idx_mapping_np
        self._end([name for name in self._places if name not in running])  # ended or preempted
        all_tokens, rows = self._req_states.all_token_ids.gpu, input_batch.idx_mapping
        ends = self._req_states.total_len.gpu[rows]
        back = torch.arange(self.settings.max_draft + 1, 0, -1, device=ends.device)
        tails = all_tokens[rows[:, None], (ends[:, None] - back).clamp(min=0)]
        told = torch.cat([ends[:, None], num_sampled[: len(rows), None], tails], 1).to(torch.int32).cpu().numpy()
        lengths, num_new, tails = told[:, 0], told[:, 1], told[:, 2:]
        for name, place, length, new, tail in zip(
            input_batch.req_ids, places.tolist(), lengths.tolist(), num_new.tolist(), tails, strict=True
        ):
            if self._places.get(name) == place:
                self._texts[place, length - new : length] = tail[len(tail) - new :]
            else:
                self._texts[place, :length] = all_tokens[place, :length].cpu().numpy()
                self._places[name] = place
                self.requests.begin(name, None)  # where no worker of ours has said so
        return lengths, num_new

    def _guess(self, names: Sequence[str], places: Ints, lengths: Ints, num_new: Ints, width: int) -> None:
        """Draft for a batch, into the tensors of this machine's memory."""
        known, num = self.requests.facts(names), len(self._texts)
        all_names, limits, spaces = [""] * num, np.zeros(num, np.int32), [self._nobody] * num
        all_lengths, all_new, most = np.ones(num, np.int32), np.zeros(num, np.int32), np.zeros(num, np.int32)
        all_lengths[places], all_new[places], limits[places] = lengths, num_new, known.limits
        for place, name, namespace in zip(places.tolist(), names, known.namespaces, strict=True):
            all_names[place], spaces[place] = name, namespace
        most[places] = np.where(num_new > 0, np.minimum(width, self.settings.max_length - lengths - 1), 0)
        most = np.minimum(most, limits).astype(np.int32)
        self._states.follow(self._texts, all_lengths, all_new, RowFacts(all_names, spaces, limits.tolist()))
        self._states.learn(self._texts)
        self._states.draft(self._texts, most, LEAST_FLOOR)
        paths = self._states.paths[places]
        before = np.concatenate([np.ones((len(places), 1), np.float32), paths[:, :-1]], 1)
        probs = np.divide(paths, before, out=np.zeros_like(paths), where=before > 0)
        last = self._texts[places, lengths - 1]
        self._host_drafts[: len(places)] = torch.from_numpy(
            np.where(paths > 0, self._states.tokens[places], last[:, None])
        )
        self._host_probs[: len(places)] = torch.from_numpy(np.minimum(probs, 1.0))

    def _end(self, names: Sequence[str]) -> None:
        self._states.end(names)
        self.requests.end(names)
        for name in names:
            self._places.pop(name, None)
