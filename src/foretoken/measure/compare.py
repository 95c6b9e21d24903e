"""The same prompt plain and drafted, in turns: are the tokens the same, and what is gained?"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foretoken.api.answer import Result
from foretoken.api.language_model import LanguageModel
from foretoken.api.options import Options, Prompt
from foretoken.core.contracts import Drafter
from foretoken.drafters import Recipe
from foretoken.measure.harness import in_turns


@dataclass(frozen=True)
class Comparison:
    """One prompt's answers.

    Args:
        plain: The first answer without drafting.
        drafted: The first answer with it.
        plain_seconds: The median over the rounds.
        drafted_seconds: Likewise.
        identical: Whether every answer of both has the same tokens.
    """

    plain: Result
    drafted: Result
    plain_seconds: float
    drafted_seconds: float
    identical: bool

    @property
    def speed(self) -> float:
        """How many times faster the drafted answer came."""
        return self.plain_seconds / self.drafted_seconds

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tokens": len(self.plain.tokens),
            "identical": self.identical,
            "speed": self.speed,
            "plain": self.plain.stats.as_dict() | {"median_seconds": self.plain_seconds},
            "drafted": self.drafted.stats.as_dict() | {"median_seconds": self.drafted_seconds},
            "text": self.drafted.text,
        }


def compare(
    lm: LanguageModel, prompt: Prompt, drafter: str | Recipe | Drafter | None, rounds: int, options: Options
) -> Comparison:
    """Answer a prompt ``rounds`` times plainly and drafted, in turns.

    Args:
        lm: The model.
        prompt: What to answer.
        drafter: What drafts.
        rounds: How often, at least once.
        options: Passed to ``generate``. Without a seed one is fixed, since both must sample alike.
    """
    # Nothing is remembered: the second round must not draft from the first one's answer.
    options = Options(seed=0) | options | Options(namespace=None)
    plainly = options | Options(drafter="none", references=None)  # which plain decoding does not take
    methods = {
        "plain": lambda asked: lm.generate(asked, **plainly),
        "drafted": lambda asked: lm.generate(asked, **(options | Options(drafter=drafter))),
    }
    (answers,) = in_turns([methods] * rounds, [prompt])
    plain, drafted = answers["plain"], answers["drafted"]
    return Comparison(
        plain[0],
        drafted[0],
        _median_seconds(plain),
        _median_seconds(drafted),
        len({result.tokens for result in (*plain, *drafted)}) == 1,
    )


def _median_seconds(results: Sequence[Result]) -> float:
    return statistics.median(result.stats.seconds for result in results)
