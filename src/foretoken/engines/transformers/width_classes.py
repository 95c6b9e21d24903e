"""Width classes: numbers of rows for which matrix products and activations round a row alike.

A library takes another kernel for one row than for four, or for many weights than for few, and each adds in its own
order. In half precision the sums mostly come out alike all the same, so that a test on ordinary numbers would see one
row in a hundred. Here terms cancel: what is left of a sum is its rounding, and any other order shows at once.

An activation is computed for as many numbers at once as the processor's registers hold, and the numbers that are left
over in another way. Which ones these are depends on how many rows there are, and on how threads share them.

Where a row's place decides how it is rounded, the width belongs to no class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import Linear
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

MAX_WEIGHTS = 1 << 26  # of a product that is tried, since so many are made for it
ACTIVATIONS = "torch.nn.modules.activation", "transformers.activations"  # modules that define them
TRIED_ROWS = 16  # of an activation, of whose numbers one in thirty shows a difference
SPREAD = 8  # powers of two that the terms lie apart, so that adding them rounds


def width_classes(model: PreTrainedModel, widths: Sequence[int]) -> dict[int, frozenset[int]]:
    """For each width, those for which every product of the model rounds a row as for this one, whatever its place.

    So do its activations. The output head is left out: its results are logits, which are so many that they show it
    without help.

    Args:
        model: Whose layers' shapes, dtypes and devices count.
        widths: Numbers of rows, rising.

    Returns:
        Widths that round alike, by width, itself among them; none where rows of one forward differ by their place.
    """
    classes = {width: frozenset(widths) for width in widths}
    for row, function in _functions(model):
        rows = row.repeat(widths[-1], 1)
        found = {width: function(rows[:width]) for width in widths}
        steady = {width for width in widths if torch.equal(found[width], found[width][:1].expand_as(found[width]))}
        for width in widths:
            same = {other for other in steady if torch.equal(found[other][0], found[width][0])}
            classes[width] &= same if width in steady else frozenset()
    return classes


def _functions(model: PreTrainedModel) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """What the model does to rows, each with a row [1, numbers] to try it on."""
    sizes: dict[tuple[int, torch.dtype, torch.device], None] = {}  # an activation follows a product: of some such size
    for weight, is_transposed in _weights(model):
        row, tried = _cancelling(weight, is_transposed)
        yield row, (partial(torch.matmul, other=tried) if is_transposed else partial(linear, weight=tried))
        sizes[weight.shape[1 if is_transposed else 0], weight.dtype, weight.device] = None
    for activation in _activations(model):
        for size, dtype, device in sizes:
            chance = torch.Generator().manual_seed(0)
            for _ in range(TRIED_ROWS):
                yield 2 * torch.randn(1, size, generator=chance).to(device, dtype), activation


def _activations(model: PreTrainedModel) -> list[nn.Module]:
    """One module for each kind of activation."""
    found = [module for module in model.modules() if type(module).__module__ in ACTIVATIONS]
    return list({repr(module): module for module in found}.values())


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
