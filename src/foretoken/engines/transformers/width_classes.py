"""Width classes: numbers of rows for which matrix products round a row alike.

A library takes another kernel for one row than for four, or for many weights than for few, and each adds in its own
order. In half precision the sums mostly come out alike all the same, so that a test on ordinary numbers would see one
row in a hundred. Here terms cancel: what is left of a sum is its rounding, and any other order shows at once.

Threads that share the rows of a forward may do the same to a row by its place: then the width belongs to no class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Linear
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

MAX_WEIGHTS = 1 << 26  # of a product that is tried, since so many are made for it
SPREAD = 8  # powers of two that the terms lie apart, so that adding them rounds


def width_classes(model: PreTrainedModel, widths: Sequence[int]) -> dict[int, frozenset[int]]:
    """For each width, those for which every product of the model rounds a row as for this one, whatever its place.

    The output head is left out: its results are logits, which are so many that they show it without help.

    Args:
        model: Whose layers' shapes, dtypes and devices count.
        widths: Numbers of rows, rising.

    Returns:
        Widths that round alike, by width, itself among them; none where rows of one forward differ by their place.
    """
    classes = {width: frozenset(widths) for width in widths}
    for weight, is_transposed in _weights(model):
        row, tried = _cancelling(weight, is_transposed)
        rows = row.repeat(widths[-1], 1)
        found = {width: rows[:width] @ tried if is_transposed else linear(rows[:width], tried) for width in widths}
        steady = {width for width in widths if torch.equal(found[width], found[width][:1].expand_as(found[width]))}
        for width in widths:
            same = {other for other in steady if torch.equal(found[other][0], found[width][0])}
            classes[width] &= same if width in steady else frozenset()
    return classes


def _weights(model: PreTrainedModel) -> Iterator[tuple[Tensor, bool]]:
    """A layer's weights for each shape of them, and whether they are stored as [inputs, outputs]."""
    head, seen = model.get_output_embeddings(), set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if module is head or not isinstance(module, Linear | Conv1D) or not isinstance(weight, Tensor):
            continue
        kind = isinstance(module, Conv1D), tuple(weight.shape), weight.dtype, weight.device
        if kind not in seen and weight.is_floating_point() and not weight.is_meta and weight.numel() <= MAX_WEIGHTS:
            seen.add(kind)
            yield weight, kind[0]


def _cancelling(weight: Tensor, is_transposed: bool) -> tuple[Tensor, Tensor]:
    """A row [1, inputs] and weights shaped as the given ones, whose products are sums that come to nothing.

    The second half of the terms are the first ones with the other sign, in the opposite order.
    """
    outputs, inputs = reversed(weight.shape) if is_transposed else weight.shape
    chance = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        powers = torch.randint(-SPREAD, 1, shape, generator=chance)
        drawn = torch.randn(shape, generator=chance) * 2.0**powers
        return drawn.to(weight.device, weight.dtype)

    half = inputs // 2
    row = weight.new_zeros(1, inputs)
    row[:, :half] = numbers(1, half)
    row[:, inputs - half :] = row[:, :half].flip(1)
    tried = weight.new_zeros(outputs, inputs)
    tried[:, :half] = numbers(outputs + half).as_strided((outputs, half), (1, 1))
    tried[:, inputs - half :] = -tried[:, :half].flip(1)
    return row, tried.T.contiguous() if is_transposed else tried
