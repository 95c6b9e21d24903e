"""How good a speculator is: the tokens of a step when it drafts for the base's own texts, which it never saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foretoken.speculators.module import SequentialHeads, SpeculatorModule
from foretoken.training.shards import Shard

ROWS = 8  # windows that are judged at once


@dataclass(frozen=True)
class Verdict:
    """What a speculator is worth.

    Args:
        accepted_length: Tokens of a step, the base's own among them, with a draft of the best guess of every head.
        top1: For each head, how often its best guess is right, given the true tokens before it.
    """

    accepted_length: float
    top1: list[float]


@torch.inference_mode()
def judge(module: SpeculatorModule, shard: Shard, device: torch.device) -> Verdict:
    """Draft for every token of the texts of ``shard``, and walk through them as decoding would."""
    steps = tokens = 0
    right = torch.zeros(module.num_heads)
    count = 0
    for start in range(0, len(shard.ids), ROWS):
        ids = torch.from_numpy(np.array(shard.ids[start : start + ROWS])).to(device)
        length = ids.shape[1] - shard.first - module.num_heads - 1
        read = ids[:, shard.first :]
        states = torch.from_numpy(np.array(shard.states[start : start + ROWS, shard.first : shard.first + length]))
        states = states.float().to(device)
        drafts = _drafts(module, states, read)
        truth = torch.stack([read[:, 2 + i : 2 + i + length] for i in range(module.num_heads)], -1)
        accepted = (drafts == truth).long().cumprod(-1).sum(-1)
        for row in accepted.tolist():
            position = 0
            while position < length:
                position += row[position] + 1
                steps += 1
            tokens += position
        for i, logits in enumerate(module.head_logits(states, read)):
            right[i] += (logits.argmax(-1) == truth[..., i]).sum().cpu()
        count += truth[..., 0].numel()
    return Verdict(tokens / steps, (right / count).tolist())


def _drafts(module: SpeculatorModule, states: Tensor, read: Tensor) -> Tensor:
    """The best guesses of all heads, [batch, length, num_heads], after pending tokens, which ``read`` has from 1 on."""
    if not isinstance(module, SequentialHeads):
        return torch.stack([logits.argmax(-1) for logits in module.head_logits(states, read)], -1)
    guesses, pending = [], read[:, 1 : 1 + states.shape[1]]
    for stage in range(module.num_heads):
        states = module.step(stage, states, pending)
        pending = module.logits(stage, states).argmax(-1)
        guesses.append(pending)
    return torch.stack(guesses, -1)
