"""The heads of blockwise parallel decoding (Stern, Shazeer and Uszkoreit 2018, arXiv 1811.03115).

One feed-forward layer turns the base's state into a vector for each head, with a residual connection around it. The
base's own output projection, which stays frozen, turns each vector into logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from foretoken.core.errors import ModelError
from foretoken.speculators.module import IndependentHeads


@dataclass(frozen=True)
class BlockwiseConfig:
    """The shape of blockwise heads.

    Args:
        vocab_size: Of the base.
        hidden_size: Width of the base's states.
        num_heads: How many tokens they guess beyond the base's own.
        filter_size: Hidden units of the feed-forward layer for each head.

    Raises:
        ForetokenError: If one is below 1.
    """

    vocab_size: int
    hidden_size: int
    num_heads: int = 4
    filter_size: int = 256

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_heads", "filter_size"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} of blockwise heads must be at least 1, not {getattr(self, name)}.")


class BlockwiseHeads(IndependentHeads):
    """A feed-forward layer with ReLU, [width] to [num_heads, width], before the base's output projection.

    Args:
        config: Their shape.
        output_head: The base's, a layer with a ``weight`` [vocab_size, hidden_size] and perhaps a ``bias``. It is no
            part of the heads: it gets no gradient, and is not in their ``state_dict``.

    Raises:
        ForetokenError: If the output head is quantized.
    """

    def __init__(self, config: BlockwiseConfig, output_head: nn.Module) -> None:
        super().__init__(config.num_heads, config.hidden_size, config.vocab_size)
        assert isinstance(output_head.weight, Tensor)
        if not output_head.weight.is_floating_point():
            raise ModelError("Blockwise heads need the model's output head, which is quantized: leave it as it was.")
        self.config = config
        self.up = nn.Linear(config.hidden_size, config.num_heads * config.filter_size)
        self.down = nn.Linear(config.num_heads * config.filter_size, config.num_heads * config.hidden_size)
        self._output_head = (output_head,)  # in a tuple, as torch would register a module

    def vectors(self, states: Tensor) -> Tensor:
        """What the output projection reads for each head: [..., width] to [..., num_heads, width]."""
        changes: Tensor = self.down(functional.relu(self.up(states)))
        vectors: Tensor = states.unsqueeze(-2) + changes.unflatten(-1, (self.num_heads, self.base_width))
        return vectors

    def each(self, states: Tensor) -> Iterator[Tensor]:
        return (self._project(vector) for vector in self.vectors(states).unbind(-2))

    def all(self, state: Tensor) -> Tensor:
        return self._project(self.vectors(state))

    def _project(self, vectors: Tensor) -> Tensor:
        # Not a call of the layer, whose hooks belong to the base's own forwards.
        weight, bias = self._output_head[0].weight, getattr(self._output_head[0], "bias", None)
        assert isinstance(weight, Tensor)
        return functional.linear(vectors.to(weight.dtype), weight.detach(), None if bias is None else bias.detach())
