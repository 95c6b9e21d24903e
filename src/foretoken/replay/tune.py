"""Which drafter and settings answer fastest on recorded answers, given what a forward costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from foretoken.core.costs import CostCurve
from foretoken.core.errors import ForetokenError
from foretoken.drafters import PromptLookup
from foretoken.replay.job import Job, JobResult, figures, with_answers
from foretoken.replay.vllm import ngram_config, suffix_config

BUDGETS = (2, 4, 7, 10, 15)
NGRAMS = {  # vLLM's prompt_lookup_min and prompt_lookup_max, (5, 5) by default, by the names of their results
    f"vllm-ngram-{low}-{high}": (low, high) for low, high in ((1, 3), (2, 3), (2, 5), (3, 5), (5, 5))
}
RESAMPLES = 1000

RunJobs = Callable[[Sequence[Job]], list[JobResult]]


@dataclass(frozen=True)
class Setting:
    """What can be chosen.

    Args:
        drafter: Its name; "none" decodes plainly.
        budget: Tokens to draft for each step.
        trees: Whether the target verifies trees; false for a drafter that drafts chains.
    """

    drafter: str
    budget: int
    trees: bool


@dataclass(frozen=True)
class Outcome:
    """What a setting brings.

    Args:
        setting: The setting.
        tokens_per_step: As in ``figures``.
        rows_per_step: The mean rows of a forward, the drafted ones and the one of the last committed token.
        draft_us: As in ``figures``; no part of the speed.
        speed: How many times faster than plain decoding, counted after the prefill.
        low: The lower end of the 95 % interval.
        high: The upper end.
    """

    setting: Setting
    tokens_per_step: float
    rows_per_step: float
    draft_us: float
    speed: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON."""
        values = asdict(self)
        setting: dict[str, Any] = values.pop("setting")
        return setting | values


PLAIN = Outcome(Setting("none", 0, False), 1.0, 1.0, 0.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Advice:
    """The outcome of all settings.

    Args:
        outcomes: Of all settings, the fastest first, plain decoding among them.
        ngram: vLLM's ngram settings and their outcomes, replayed with prompt lookup, fastest first.
        suffix: vLLM's suffix settings that come closest, unmeasured.
    """

    outcomes: tuple[Outcome, ...]
    ngram: tuple[tuple[dict[str, Any], Outcome], ...]
    suffix: dict[str, Any]

    @property
    def best(self) -> Outcome:
        return self.outcomes[0]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "best": self.best.as_dict(),
            "settings": [outcome.as_dict() for outcome in self.outcomes],
            "vllm": {
                "ngram": [
                    {"config": config, "measured": "replayed with an emulation"}
                    | {key: value for key, value in outcome.as_dict().items() if key not in ("drafter", "trees")}
                    for config, outcome in self.ngram
                ],
                "suffix": {"config": self.suffix, "measured": "no"},
            },
        }


def tune(jobs: Sequence[Job], run: RunJobs, costs: CostCurve, seed: int = 0) -> tuple[Advice, list[JobResult]]:
    """Advice from the jobs of drafters on trees, of ``vllm_jobs`` and of chains where they differ; and all results.

    Raises:
        ForetokenError: If a job fails or no answer can be replayed.
    """
    results = run(jobs)
    # On a target that verifies only chains, a drafter that never branched does the very same.
    results += run([replace(result.job, trees=False) for result in results if result.branched])
    results = with_answers(results)
    outcomes: list[Outcome] = [PLAIN]
    ngram: list[tuple[dict[str, Any], Outcome]] = []
    for setting, parts in by_setting(results).items():
        outcome = judge(setting, parts, costs, seed)
        if setting.drafter in NGRAMS:
            ngram.append((ngram_config(*NGRAMS[setting.drafter], setting.budget), outcome))
        else:
            outcomes.append(outcome)
    # Of equal speeds the simpler setting: fewer tokens, chains.
    outcomes.sort(key=lambda outcome: (-outcome.speed, outcome.setting.budget, outcome.setting.trees))
    ngram.sort(key=lambda pair: (-pair[1].speed, pair[1].setting.budget))
    chain = next((outcome for outcome in outcomes if not outcome.setting.trees and outcome.setting.budget), outcomes[0])
    suffix = suffix_config(max(chain.setting.budget, 1), break_even(chain, costs))
    return Advice(tuple(outcomes), tuple(ngram), suffix), results


def by_setting(results: Sequence[JobResult]) -> dict[Setting, list[JobResult]]:
    """The results of each setting; what drafted only chains on trees counts for chains too."""
    groups: dict[Setting, list[JobResult]] = {}
    branched = {(result.job.drafter, result.job.budget) for result in results if result.branched}
    for result in results:
        pair = result.job.drafter, result.job.budget
        if result.job.trees:
            groups.setdefault(Setting(*pair, pair in branched), []).append(result)
        if not result.branched and (pair in branched or not result.job.trees):
            groups.setdefault(Setting(*pair, False), []).append(result)
    return groups


def vllm_jobs(job: Job, budgets: Sequence[int]) -> list[Job]:
    """The jobs of ``job``'s file for vLLM's ngram method, which prompt lookup does as vLLM does."""
    return [
        replace(job, drafter=name, recipe=PromptLookup(high, low, first=True), budget=budget, trees=False)
        for name, (low, high) in NGRAMS.items()
        for budget in budgets
    ]


def affordable(budgets: Sequence[int] | None, costs: CostCurve) -> list[int]:
    """The budgets to try: those given, else the usual ones whose cost is known.

    Raises:
        ForetokenError: If the cost of a given one is not known, or of none.
    """
    usable = [budget for budget in budgets or BUDGETS if 1 + budget <= costs.most_rows]
    if not usable or (budgets and len(usable) < len(budgets)):
        least = max(budgets or BUDGETS[:1])
        raise ForetokenError(
            f"The costs end at {costs.most_rows} rows and {least} drafted tokens need {least + 1}: measure more rows."
        )
    return usable


def judge(setting: Setting, results: Sequence[JobResult], costs: CostCurve, seed: int) -> Outcome:
    """The speed of a setting, with an interval from resampling the answers.

    A step costs what its rows do; plain decoding takes one step of one row for each token after the prefill's. Answers
    are resampled with replacement, the same for every setting. Those of one log may be alike and a drafter may remember
    earlier ones, so the interval covers the choice of answers, not another kind of log.
    """
    items = [item for result in results for item in result.items]
    plain = np.array([(item.stats.tokens - 1) * costs.seconds(1) for item in items])
    drafted = np.array([sum(steps * costs.seconds(rows) for rows, steps in item.rows.items()) for item in items])
    rng = np.random.default_rng(seed)
    speeds = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(len(items), size=len(items))
        speeds.append(plain[chosen].sum() / drafted[chosen].sum())
    low, high = np.quantile(speeds, (0.025, 0.975))
    numbers = figures(results)
    return Outcome(
        setting,
        numbers["tokens_per_step"],
        1 + numbers["drafted_per_step"],
        numbers["draft_us"],
        float(plain.sum() / drafted.sum()),
        float(low),
        float(high),
    )


def break_even(outcome: Outcome, costs: CostCurve) -> float:
    """The chance of being accepted from which a further guess pays for its row, at the best settings' speed."""
    rows = round(outcome.rows_per_step)
    rows = min(rows, costs.most_rows - 1)  # of those whose cost is known
    further = costs.seconds(rows + 1) - costs.seconds(rows)
    return max(further, 0.0) * outcome.speed / costs.seconds(1)
