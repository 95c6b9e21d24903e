"""The numeric promise on one model: where drafted and plain answers part, if they do, and how near the tie was.

A forward over many rows rounds unlike a forward over one. In float32 that must never show; in half precision two logits
that nearly tie may change places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretoken.api.language_model import LanguageModel
from foretoken.core.budget import FixedBudget
from foretoken.core.contracts import Drafter, Step, Target
from foretoken.core.decode import decode
from foretoken.core.draft import Draft
from foretoken.core.errors import ForetokenError, LogitsError, ModelError
from foretoken.drafters import AdaptiveNgram
from foretoken.memory.self_tests import SelfTest

Logits = NDArray[np.float32]

CONTEXTS = (16, 128, 256)  # tokens before an answer; attention rounds as the length of the context decides
TEXT = '''The first thing they noticed about the house was how quiet it stood. No dog barked, no curtain moved,
and the gate had been open for so long that grass grew through its lower bars. "Somebody lives here," said Anna, "or
somebody did." She held up a cup, still half full, with a ring of dust around its rim. Her brother did not answer at
once. He counted the windows, 1, 2, 3, 4, 5, 6, and then the doors, of which there were more than a house of that size
could need.

def read_lines(path):
    """Yield the lines of a file, without what ends them."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            yield number, line.rstrip("\\n")


class Counter:
    def __init__(self, start=0):
        self.value = start

    def add(self, amount=1):
        if amount < 0:
            raise ValueError(f"amount is {amount}: give a number from 0 on")
        self.value += amount
        return self.value

| year | visitors | of them abroad |
|------|----------|----------------|
| 2019 |   48,210 |         12,077 |
| 2020 |   11,934 |          1,208 |
| 2021 |   19,406 |          2,655 |

What the table shows is simple enough: fewer people came, and those who came lived nearby. Why the numbers did not rise
again as fast as they had fallen is harder to say, and the letters that the museum kept do not agree about it. Some of
'''


@dataclass(frozen=True)
class Difference:
    """Where a drafted answer first differs from the plain one.

    Args:
        prompt: Which prompt, from 0.
        drafter: What drafted.
        position: How many tokens of the answer agree.
        plain: The plain answer's token there.
        drafted: The drafted answer's.
        gap: By how much the plain run's best logit there led the second; None if that is no number.
    """

    prompt: int
    drafter: str
    position: int
    plain: int
    drafted: int
    gap: float | None


@dataclass
class Report:
    """What one dtype did on every prompt.

    Args:
        dtype: Name of the dtype.
        trees: Whether the model takes draft trees, so that they were tried.
        answers: How many drafted answers were compared with their plain one.
        tokens: Tokens of the plain answers.
        noise: The most that a logit moved between a one-row forward and a row of a wide one, on the same tokens; None
            where none was compared.
        contexts: For each prompt, how many tokens stood before the answer's first token and before its last.
        not_numbers: How many answers met logits that are not numbers, plain or drafted, so that none could be chosen.
        differences: One for every answer that differed.
        exact: Whether drafted logits had to be plain decoding's in every bit.
        self_test: What the self-test of exactness found. None where there can be none.
        not_exact: Why there can be none.
    """

    dtype: str
    trees: bool
    answers: int = 0
    tokens: int = 0
    noise: float | None = None
    contexts: list[tuple[int, int]] = field(default_factory=list)
    not_numbers: int = 0
    differences: list[Difference] = field(default_factory=list)
    exact: bool = False
    self_test: SelfTest | None = None
    not_exact: str | None = None

    @property
    def identical(self) -> bool:
        return not self.differences and not self.not_numbers

    @property
    def holds(self) -> bool:
        """Whether the promise is kept: logits are numbers, and the texts identical where rounding is no excuse."""
        strict = self.exact or self.dtype in ("float32", "float64")
        return self.identical if strict else not self.not_numbers

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


def check(lm: LanguageModel, max_new_tokens: int, prompts: Sequence[str] | None = None) -> Report:
    """Answer every prompt greedily, plainly and drafted, and compare tokens and logits.

    Args:
        lm: The model, in the dtype to be checked.
        max_new_tokens: Length of the answers.
        prompts: What to answer. If None, one text up to each of ``CONTEXTS`` that fits the model's context.

    Raises:
        ForetokenError: If a prompt leaves no room for its answer, or the engine shows no logits.
    """
    target = lm.engine.target()
    if "row_logits" not in target.provides:
        raise ModelError(f"The {lm.engine.name} engine shows no logits to check: compare its texts instead.")
    report = Report(lm.engine.dtype, target.supports_trees, exact=lm.engine.exact)
    try:
        report.self_test = lm.engine.self_test
    except ForetokenError as error:
        report.not_exact = str(error)
    for index, ids in enumerate(_contexts(lm, max_new_tokens) if prompts is None else map(lm.encode, prompts)):
        try:
            plain = list(_tokens_with_logits(target, None, ids, max_new_tokens))
        except LogitsError:
            report.answers += 1
            report.not_numbers += 1
            continue
        tokens = [token for token, _ in plain]
        report.tokens += len(tokens)
        report.contexts.append((len(ids), len(ids) + len(tokens) - 1))
        for drafter in _drafters(target, [*ids, *tokens], lm.engine.vocab_size):
            report.answers += 1
            try:
                drafted = list(_tokens_with_logits(target, drafter, ids, max_new_tokens))
            except LogitsError:
                report.not_numbers += 1
            else:
                _compare(report, index, type(drafter).__name__, plain, drafted)
    return report


def _contexts(lm: LanguageModel, max_new_tokens: int) -> list[list[int]]:
    ids = lm.encode(TEXT)
    room = len(ids) if lm.engine.max_length is None else max(1, lm.engine.max_length - max_new_tokens)
    return [ids[:length] for length in sorted({min(length, room, len(ids)) for length in CONTEXTS})]


def _drafters(target: Target, text: Sequence[int], vocab: int) -> Iterator[Drafter]:
    """One that guesses, and the known answer as a chain and, where the model takes it, as a tree."""
    yield AdaptiveNgram()
    yield RecordedTree(text, vocab, False)
    if target.supports_trees:
        yield RecordedTree(text, vocab, True)


def _tokens_with_logits(
    target: Target, drafter: Drafter | None, ids: Sequence[int], max_new_tokens: int
) -> Iterator[tuple[int, Logits]]:
    """Every token of an answer and the logits that it was chosen from, float32 [vocab]."""
    for step in decode(target, drafter, ids, max_new_tokens=max_new_tokens, budget=FixedBudget(15)):
        assert step.scores is not None
        for token, node in zip(step.tokens, (-1, *step.path), strict=True):
            yield token, np.array(step.scores.row_logits(node + 1), np.float32)


def _compare(
    report: Report, prompt: int, drafter: str, plain: list[tuple[int, Logits]], drafted: list[tuple[int, Logits]]
) -> None:
    """Add a pair of answers to the report, up to their first difference."""
    for position, ((token, logits), (other, others)) in enumerate(zip(plain, drafted, strict=True)):
        differ = logits != others
        moved = float(np.abs(logits[differ] - others[differ]).max(initial=0.0))
        if not math.isfinite(moved) or not math.isfinite(float(logits[token])):
            report.not_numbers += 1
            return
        report.noise = max(report.noise or 0.0, moved)
        if token != other:
            second, best = np.partition(logits, -2)[-2:].tolist()
            gap = best - second if math.isfinite(best - second) else None
            report.differences.append(Difference(prompt, drafter, position, token, other, gap))
            return
