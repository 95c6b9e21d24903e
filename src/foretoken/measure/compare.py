"""Answer a prompt plainly and drafted, in turns: are the tokens the same, and how much faster is it?"""

from __future__ import annotations

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
        plain: The answer without drafting of the turn whose time is the median.
        drafted: The same with drafting.
        identical: Whether every answer of both has the same tokens.
    """

    plain: Result
    drafted: Result
    identical: bool

    @property
    def speed(self) -> float:
        """How many times faster the drafted answer came."""
        return self.plain.stats.seconds / self.drafted.stats.seconds

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tokens": len(self.plain.tokens),
            "identical": self.identical,
            "exact": self.drafted.exact,
            "speed": self.speed,
            "plain": self.plain.stats.as_dict(),
            "drafted": self.drafted.stats.as_dict(),
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
    identical = len({result.tokens for result in (*plain, *drafted)}) == 1
    return Comparison(_median_turn(plain), _median_turn(drafted), identical)


def _median_turn(results: Sequence[Result]) -> Result:
    """The answer that took the median time; the quicker of the two in the middle."""
    return sorted(results, key=lambda result: result.stats.seconds)[(len(results) - 1) // 2]
