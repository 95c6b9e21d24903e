"""Which logits processors a draft may ask, and how they are asked about a padded prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
import transformers as tf
from torch import FloatTensor, LongTensor, Tensor

from foretoken.engines.transformers.choice import Choice

# What these say depends on their arguments alone. Others, a grammar's for one, may go by the order of their calls.
STATELESS = (
    tf.EpsilonLogitsWarper,
    tf.EtaLogitsWarper,
    tf.MinLengthLogitsProcessor,
    tf.MinNewTokensLengthLogitsProcessor,
    tf.MinPLogitsWarper,
    tf.NoBadWordsLogitsProcessor,
    tf.NoRepeatNGramLogitsProcessor,
    tf.RepetitionPenaltyLogitsProcessor,
    tf.SuppressTokensLogitsProcessor,
    tf.TemperatureLogitsWarper,
    tf.TopKLogitsWarper,
    tf.TopPLogitsWarper,
    tf.TypicalLogitsWarper,
)


@dataclass(frozen=True)
class Padded:
    """Processors that are shown the padding that the model is not: they were made for lengths that count it.

    Args:
        processors: What transformers prepared.
        padding: Token ids, [1, any length].
    """

    processors: tf.LogitsProcessorList
    padding: Tensor

    def __call__(self, ids: Tensor, scores: FloatTensor) -> Tensor:
        return self.processors(cast(LongTensor, torch.cat([self.padding, ids], dim=1)), scores)


def stateless(choice: Choice) -> Choice:
    """The choice without processors that may keep a state: a draft asks about tokens that never come to be.

    The same seed still couples the draft to the answer, and a guess that a grammar forbids is rejected.
    """
    asked = choice.processors
    processors = asked.processors if isinstance(asked, Padded) else asked
    some = processors if isinstance(processors, list) else []
    kept = tf.LogitsProcessorList(processor for processor in some if type(processor) in STATELESS)
    if not kept:
        return Choice(seed=choice.seed)
    return Choice(replace(asked, processors=kept) if isinstance(asked, Padded) else kept, choice.seed)
