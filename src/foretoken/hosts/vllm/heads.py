"""Trained heads for all rows of a step of vLLM: MLP and LSTM speculators, Medusa and blockwise heads.

vLLM served MLP speculators up to its first engine and Medusa heads up to 0.32. Here their files serve again, by the
modules of ``foretoken.speculators``, with a batch of rows for each head and a chain for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foretoken.core.contracts import Candidates
from foretoken.core.errors import ModelError
from foretoken.drafters.head_chances import Chances, Level, compile_levels
from foretoken.speculators.formats import load_speculator
from foretoken.speculators.heads import best_of
from foretoken.speculators.module import IndependentHeads, SequentialHeads

FOUND, FOLDER = "auto", "speculator"  # the folder within that of the model which it belongs to
NAMED = 8  # candidates of a row by which a head's certainty is judged

Ints = NDArray[Any]
Floats = NDArray[Any]


class BatchHeads:
    """Guesses of trained heads for many rows, and how likely they are.

    A row's guesses are the heads' likeliest tokens, one after the other. Their chances are learned from what came, for
    each namespace by itself.

    Args:
        heads: The trained heads, in place.
        most: The most tokens of a draft.
    """

    def __init__(self, heads: IndependentHeads | SequentialHeads, most: int) -> None:
        self.num_heads = min(heads.num_heads, most)
        self._heads = heads
        parameter = next(heads.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._chances: WeakKeyDictionary[Hashable, Chances] = WeakKeyDictionary()
        self._groups: list[tuple[Chances, list[int]]] = []  # the rows of each namespace in the last guesses
        self._levels: list[list[Level]] = []  # of each head, of each of these groups
        compile_levels()

    @torch.inference_mode()
    def guess(
        self,
        states: Tensor,
        last: Sequence[int],
        temperatures: Sequence[float],
        namespaces: Sequence[Hashable],
        floor: float,
    ) -> tuple[Ints, Floats]:
        """What comes after the last tokens of some rows.

        Args:
            states: [rows, width], what the target's output head read where it chose each row's last token.
            last: These tokens.
            temperatures: At which each row's tokens are chosen; 0 for the likeliest.
            namespaces: Whose experience is used for each row.
            floor: The least probability of a path for which a further head is asked.

        Returns:
            The tokens, int32 [rows, heads], and how likely each and all before it are right, float32 [rows, heads]; 0
            where no head was asked.
        """
        rows = len(last)
        tokens, paths = np.zeros((rows, self.num_heads), np.int32), np.zeros((rows, self.num_heads), np.float32)
        self._group(namespaces)
        self._levels = []
        scale = torch.tensor([one or 1.0 for one in temperatures], device=self._device)[:, None]
        before = np.ones(rows)
        ask = self._asker(states.to(self._device, self._dtype))
        known = torch.tensor(last, device=self._device)
        for depth in range(self.num_heads):
            if before.max(initial=0.0) < floor:
                break
            named, logprobs = best_of(ask(known).float() / scale, NAMED, 1.0)
            if not np.isfinite(logprobs[:, 0]).all():
                raise ModelError(
                    "The speculator's logits are not numbers: its weights are damaged, or too large for its dtype."
                )
            levels = []
            for chances, members in self._groups:
                said = Candidates(named[members], logprobs[members], np.zeros_like(logprobs[members]))
                level = chances.level(depth, said, 1)
                tokens[members, depth], before[members] = level.tokens[:, 0], before[members] * level.probs[:, 0]
                levels.append(level)
            known = torch.from_numpy(tokens[:, depth]).to(self._device).long()
            self._levels.append(levels)
            paths[:, depth] = before
        return tokens, paths

    def learn(self, committed: Sequence[Sequence[int]]) -> None:
        """Learn from what came after each row's last token since the last guesses, or from nothing.

        Args:
            committed: The tokens of each row; none where nothing came. Empty if that is not known.
        """
        for group, (chances, members) in enumerate(self._groups if committed else []):
            for place, row in enumerate(members):
                for depth, (token, levels) in enumerate(zip(committed[row], self._levels, strict=False)):
                    level = levels[group]
                    chances.learn(depth, level, place, token)
                    if token != level.tokens[place, 0]:
                        break
        self._groups, self._levels = [], []

    def _group(self, namespaces: Sequence[Hashable]) -> None:
        groups: dict[Hashable, list[int]] = {}
        for row, namespace in enumerate(namespaces):
            groups.setdefault(namespace, []).append(row)
        for namespace in groups:
            if namespace not in self._chances:
                self._chances[namespace] = Chances(self._heads.num_heads, 1, noisy=False)
        self._groups = [(self._chances[namespace], members) for namespace, members in groups.items()]

    def _asker(self, states: Tensor) -> Callable[[Tensor], Tensor]:
        """Gives the logits [rows, vocab] of each head in turn, called with the tokens before those that it guesses."""
        heads = self._heads
        if isinstance(heads, IndependentHeads):
            each = iter(heads.each(states))
            return lambda tokens: next(each)
        stages = iter(range(heads.num_heads))

        def ask(tokens: Tensor) -> Tensor:
            nonlocal states
            stage = next(stages)
            states = heads.step(stage, states, tokens)
            return heads.logits(stage, states)

        return ask


def load_heads(folder: str, model: nn.Module, model_config: Any, device: torch.device, most: int) -> BatchHeads:
    """The trained heads of a folder, for a model of vLLM's.

    Args:
        folder: Its path, its name within the model's folder, or "auto" for ``speculator`` there.
        model: The target.
        model_config: vLLM's ``ModelConfig``.
        device: Where the target runs.
        most: The most tokens of a draft.

    Raises:
        ForetokenError: If there is no such folder, it is damaged, or it was trained for another model.
    """
    width, vocab = int(model_config.get_hidden_size()), int(model_config.get_vocab_size())
    heads = load_speculator(_folder(folder, model_config.model), width, vocab, _OutputHead(model, vocab))
    # Where a CPU has no arithmetic for half precision, heads in it take longer than the target.
    dtype = torch.float32 if device.type == "cpu" else model_config.dtype
    return BatchHeads(heads.to(device, dtype), most)


def _folder(name: str, model: str) -> Path:
    for folder in [Path(model) / FOLDER] if name == FOUND else [Path(name).expanduser(), Path(model) / name]:
        if folder.is_dir():
            return folder
    raise ModelError(f"There is no speculator folder {name!r}: give a folder of trained heads for {model}.")


class _OutputHead(nn.Module):
    """The output projection of a model of vLLM's without the rows that only fill it up; blockwise heads share it."""

    def __init__(self, model: nn.Module, vocab: int) -> None:
        super().__init__()
        self._model, self._vocab = (model,), vocab  # in a tuple, as torch would register a module

    @property
    def weight(self) -> Tensor:
        """[vocab, width].

        Raises:
            ForetokenError: If it is not in this process as a whole.
        """
        head = getattr(self._model[0], "lm_head", None)
        weight = getattr(head, "weight", None)
        if weight is None or len(weight) < self._vocab:
            raise ModelError(
                "Blockwise heads need the target's output projection as a whole, which this engine does not have in "
                "one process: use a speculator with heads of its own."
            )
        whole: Tensor = weight[: self._vocab]
        return whole
