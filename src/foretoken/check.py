"""The numeric promise on one model: where a drafted answer leaves the plain one, if anywhere, and how near the tie was.

A forward over many rows rounds unlike a forward over one. In float32 that must never show; in half precision two logits
that nearly tie may change places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from foretoken.api.language_model import LanguageModel
from foretoken.core.budget import FixedBudget
from foretoken.core.contracts import Drafter, Step
from foretoken.core.decode import decode
from foretoken.core.draft import Draft
from foretoken.drafters import AdaptiveNgram
from foretoken.engines.transformers import TransformersScores, TransformersTarget

PROMPTS = (
    "The first thing they noticed about the house was",
    "def read_lines(path):\n    with open(path) as file:\n",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,",
)


@dataclass(frozen=True)
class Difference:
    """Where a drafted answer first differs from the plain one.

    Args:
        prompt: Which prompt, from 0.
        drafter: What drafted.
        position: How many tokens of the answer agree.
        plain: The plain answer's token there.
        drafted: The drafted answer's.
        gap: By how much the plain run's best logit there led the second.
    """

    prompt: int
    drafter: str
    position: int
    plain: int
    drafted: int
    gap: float


@dataclass
class Report:
    """What one dtype did on every prompt.

    Args:
        dtype: Name of the dtype.
        trees: Whether the model takes draft trees, so that they were tried.
        answers: How many drafted answers were compared with their plain one.
        tokens: Tokens of the plain answers.
        noise: The most that a logit moved between a one-row forward and a row of a wide one, on the same tokens.
        differences: One for every answer that differed.
    """

    dtype: str
    trees: bool
    answers: int = 0
    tokens: int = 0
    noise: float = 0.0
    differences: list[Difference] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"identical": self.identical}


class RecordedTree:
    """Drafts a known answer, each token beside a wrong one, so that every accepted row comes out of a wide forward."""

    def __init__(self, text: Sequence[int], vocab: int, trees: bool) -> None:
        self.text, self.vocab, self.trees = text, vocab, trees

    def begin(self, prompt: Sequence[int]) -> None:
        pass

    def observe(self, step: Step) -> None:
        pass

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        right = self.text[len(context) :]
        if not self.trees:
            return Draft.chain(right[:max_tokens])
        tokens: list[int] = []
        parents: list[int] = []
        for i, token in enumerate(right[: max_tokens // 2]):
            tokens += [(token + 1) % self.vocab, token]
            parents += [2 * i - 1] * 2
        return Draft(tuple(tokens), tuple(parents))


def check(lm: LanguageModel, max_new_tokens: int, prompts: Sequence[str] = PROMPTS) -> Report:
    """Answer every prompt greedily, plainly and drafted, and compare tokens and logits.

    Args:
        lm: The model, in the dtype to be checked.
        max_new_tokens: Length of the answers.
        prompts: What to answer.
    """
    target = TransformersTarget(lm.model, max_length=lm.max_length)
    report = Report(str(lm.model.dtype).removeprefix("torch."), target.supports_trees)
    for index, prompt in enumerate(prompts):
        ids = lm.encode(prompt)
        plain = list(_tokens_with_logits(target, None, ids, max_new_tokens))
        tokens = [token for token, _ in plain]
        report.tokens += len(tokens)
        vocab_size = lm.model.config.get_text_config(decoder=True).vocab_size
        drafters: list[Drafter] = [AdaptiveNgram(), RecordedTree([*ids, *tokens], vocab_size, False)]
        if target.supports_trees:
            drafters.append(RecordedTree([*ids, *tokens], vocab_size, True))
        for drafter in drafters:
            drafted = list(_tokens_with_logits(target, drafter, ids, max_new_tokens))
            _compare(report, index, type(drafter).__name__, plain, drafted)
    return report


def _tokens_with_logits(
    target: TransformersTarget, drafter: Drafter | None, ids: Sequence[int], max_new_tokens: int
) -> Iterator[tuple[int, Tensor]]:
    """Every token of an answer and the logits that it was chosen from, float32 [vocab]."""
    for step in decode(target, drafter, ids, max_new_tokens=max_new_tokens, budget=FixedBudget(15)):
        assert isinstance(step.scores, TransformersScores)
        row = 0
        for i, token in enumerate(step.tokens):
            yield token, step.scores.logits[row].float().clone()
            if i < step.num_accepted:
                row = next(c for c in step.draft.children(row - 1) if step.draft.tokens[c] == token) + 1


def _compare(
    report: Report, prompt: int, drafter: str, plain: list[tuple[int, Tensor]], drafted: list[tuple[int, Tensor]]
) -> None:
    """Add a pair of answers to the report, up to their first difference."""
    report.answers += 1
    for position, ((token, logits), (other, others)) in enumerate(zip(plain, drafted, strict=True)):
        report.noise = max(report.noise, float((logits - others).abs().max()))
        if token != other:
            best, second = torch.topk(logits, 2).values.tolist()
            report.differences.append(Difference(prompt, drafter, position, token, other, best - second))
            return
