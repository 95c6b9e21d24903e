"""What the kinds of trained heads have in common: which token a head guesses, and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional


class SpeculatorModule(nn.Module, ABC):
    """Trained heads on the states of a base model. A state is what the base's output head reads in a row.

    The state of position t is that of the row that read token t, and the base's own head chooses token t + 1 from it.
    Head i, counted from 0, guesses token t + 2 + i.

    Args:
        num_heads: How many tokens are guessed.
        base_width: Of a state.
        vocab_size: Of the base.
    """

    def __init__(self, num_heads: int, base_width: int, vocab_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.base_width = base_width
        self.vocab_size = vocab_size

    @abstractmethod
    def head_logits(self, states: Tensor, tokens: Tensor) -> Iterator[Tensor]:
        """The logits [batch, length, vocab] of each head in turn, given the true tokens before its own.

        Args:
            states: [batch, length, base_width].
            tokens: int64 [batch, length + num_heads] or longer. ``tokens[:, t]`` was read at t.
        """

    def losses(self, states: Tensor, tokens: Tensor) -> list[Tensor]:
        """The mean cross-entropy of each head, in nats.

        Args:
            states: [batch, length, base_width].
            tokens: int64 [batch, length + num_heads + 1]. ``tokens[:, t]`` was read at t.

        Returns:
            One scalar a head, with a gradient.
        """
        length = states.shape[1]
        return [
            functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 2 + i : 2 + i + length].flatten())
            for i, logits in enumerate(self.head_logits(states, tokens))
        ]


class IndependentHeads(SpeculatorModule):
    """Heads that read the state alone: none sees the tokens before its own."""

    @abstractmethod
    def each(self, states: Tensor) -> Iterator[Tensor]:
        """The logits [..., vocab] of each head in turn for ``states`` [..., base_width]."""

    def all(self, state: Tensor) -> Tensor:
        """The logits [num_heads, vocab] of all heads for one ``state`` [base_width]."""
        return torch.stack(list(self.each(state)))

    def head_logits(self, states: Tensor, tokens: Tensor) -> Iterator[Tensor]:
        return self.each(states)


class SequentialHeads(SpeculatorModule):
    """Stages that each read the token guessed last, and turn the state of the stage before into their own."""

    @abstractmethod
    def step(self, stage: int, state: Tensor, tokens: Tensor) -> Tensor:
        """The state after a stage.

        Args:
            stage: Counted from 0.
            state: [..., base_width], the base's, before stage 0; otherwise what the stage before returned.
            tokens: int64 [...]. The tokens guessed last; before stage 0, those that the base chose.

        Returns:
            [..., width of the stages' own states].
        """

    @abstractmethod
    def logits(self, stage: int, state: Tensor) -> Tensor:
        """The logits [..., vocab] of a stage, given the state that its ``step`` returned."""

    def head_logits(self, states: Tensor, tokens: Tensor) -> Iterator[Tensor]:
        length = states.shape[1]
        for stage in range(self.num_heads):
            states = self.step(stage, states, tokens[:, 1 + stage : 1 + stage + length])
            yield self.logits(stage, states)
