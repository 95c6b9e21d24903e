"""Which logits processors a draft may ask, and how they are asked about a padded prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
import transformers as tf
from torch import FloatTensor, LongTensor, Tensor

from foretoken.engines.transformers.choice import Choice


class CountPenalties(tf.LogitsProcessor):
    """Presence and frequency penalties as OpenAI's API has them: by what the answer holds, not its prompt.

    Args:
        presence: Subtracted from the logit of every token that the answer holds.
        frequency: Subtracted for each time that it does.
        num_prompt_tokens: Where the answer begins.
    """

    def __init__(self, presence: float, frequency: float, num_prompt_tokens: int) -> None:
        self.presence, self.frequency, self.start = presence, frequency, num_prompt_tokens

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        counts = torch.zeros_like(scores)
        answer = input_ids[:, self.start :].to(scores.device)
        counts.scatter_add_(1, answer, torch.ones_like(answer, dtype=scores.dtype))
        return cast(FloatTensor, scores - self.frequency * counts - self.presence * (counts > 0))


# Stateless: the result depends only on the arguments. Others, such as grammar constraints, may depend on the order of
# calls.
STATELESS = (
    CountPenalties,
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
