"""The first layers of a model as a model of their own: the same weights, the same cache.

LayerSkip (arXiv 2404.16710, section 4.3): the final norm and the output head read the states after layer E. What these
layers wrote to the cache for the committed tokens is what the full model wrote, so nothing is read twice.
"""

from __future__ import annotations

import copy

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from foretoken.core.errors import RequestError
from foretoken.core.numbers import whole
from foretoken.engines.transformers.cache import FirstLayers
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.processors import stateless
from foretoken.engines.transformers.target import TransformersTarget

LAYERS = ("layers", "h", "blocks")  # what decoders call them


class ExitTarget(TransformersTarget):
    """The first layers of another target's model, on that target's cache.

    It is bound to the other's tokens by ``rewind``. What it scores stands in the shared layers, so it must be rewound
    to where it began before the other scores or keeps anything.

    Args:
        full: The target to share with.
        num_layers: How many layers; at least 1, and fewer than the full model has. If None, a third of them.
        choice: How tokens are chosen. If None, as the full target does, without processors that may keep
            a state.

    Raises:
        ForetokenError: If the number of layers is out of range, the model's layers cannot be reached, or the full
            target's cache has sliding layers.
    """

    def __init__(self, full: TransformersTarget, num_layers: int | None = None, choice: Choice | None = None) -> None:
        full.cache.refuse_first_layers()
        if num_layers is None:
            num_layers = max(1, full.model.config.get_text_config(decoder=True).num_hidden_layers // 3)
        model = first_layers(full.model, num_layers)
        cache = FirstLayers(full.cache, model, num_layers)
        super().__init__(model, choice or stateless(full.choice), cache=cache, max_length=full.max_length)
        self.full = full

    @property
    def max_draft_depth(self) -> int | None:
        """The full target's: beyond it layers have no positions, or move the rotary frequencies that all share."""
        return self.full.max_draft_depth


def first_layers(model: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """A model of the first layers of another, its final norm and its output head; the weights are shared.

    Raises:
        ForetokenError: If the number of layers is out of range, or they cannot be reached.
    """
    total = model.config.get_text_config(decoder=True).num_hidden_layers
    num_layers = whole("The layer of an early exit", num_layers)
    if not 1 <= num_layers < total:
        raise RequestError(
            f"An exit after {num_layers!r} layers was asked for, and the model has {total}: "
            f"choose from 1 to {total - 1}."
        )
    text = model.config.get_text_config(decoder=True)
    if getattr(text, "num_kv_shared_layers", 0) or getattr(text, "hidden_size_per_layer_input", 0):
        raise RequestError(
            f"The layers of {type(model).__name__} share keys or have inputs of their own, so that its first layers "
            "are no model by themselves: use another drafter, such as a smaller model."
        )
    decoder = model.get_decoder()
    name = next((name for name in LAYERS if isinstance(getattr(decoder, name, None), nn.ModuleList)), None)
    path = next((path for path, module in model.named_modules() if module is decoder), None)
    # A forward that something put on an object, as accelerate does to spread a model over devices, is bound to it.
    if name is None or not path or "forward" in vars(model) | vars(decoder) or len(getattr(decoder, name)) != total:
        raise RequestError(
            f"{type(model).__name__} does not let its layers be reached, so it cannot exit early: "
            "use another drafter, such as a smaller model."
        )
    config = copy.deepcopy(model.config)
    text = config.get_text_config(decoder=True)
    text.num_hidden_layers = num_layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:num_layers]
    clone = inner = _shallow(model, config)
    for part in path.split("."):
        module = getattr(inner, part)
        inner._modules[part] = _shallow(module, text if module is decoder else config)
        inner = getattr(inner, part)
    inner._modules[name] = getattr(inner, name)[:num_layers]
    return clone


def _shallow(module: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """The module with the same parts, which can be exchanged without touching it, and another config."""
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    clone.config = config
    return clone
