from __future__ import annotations

import json

import pytest

from foretoken import ForetokenError
from foretoken.core.costs import CostCurve
from foretoken.replay.costs import parse_costs
from foretoken.replay.plan import make_jobs
from foretoken.replay.read import Reading
from foretoken.replay.run import run_jobs
from foretoken.replay.tune import affordable, by_setting, judge, tune
from foretoken.reports.replay import sentences
from helpers.logs import write_log, write_tokenizer


def here(jobs):
    return run_jobs(jobs, 1)


def test_speed_is_the_time_of_plain_over_that_of_drafted(jobs_to_tune):
    costs = parse_costs("linear:0.1")
    for setting, results in by_setting(here(jobs_to_tune)).items():
        outcome = judge(setting, results, costs, seed=0)
        plain = drafted = 0.0
        for result in results:
            for item in result.items:
                plain += item.stats.tokens - 1
                drafted += item.stats.steps + 0.1 * item.stats.drafted
        assert outcome.speed == pytest.approx(plain / drafted)
        assert outcome.low < outcome.speed < outcome.high
        assert len(results) == 2 and outcome == judge(setting, results, costs, seed=0)


def test_flat_costs_make_speed_tokens_per_step(jobs_to_tune):
    advice, _ = tune(jobs_to_tune, here, parse_costs("flat"))
    assert all(outcome.speed == pytest.approx(outcome.tokens_per_step) for outcome in advice.outcomes)
    assert advice.best.speed == max(outcome.speed for outcome in advice.outcomes) > 1
    assert advice.suffix["suffix_decoding_min_token_prob"] == 0.0


def test_trees_and_chains_are_told_apart_where_they_differ(jobs_to_tune):
    ran = []

    def run(some):
        ran.append(list(some))
        return here(some)

    advice, results = tune(jobs_to_tune, run, parse_costs("flat"))
    assert (
        ran[0] == jobs_to_tune
        and {(job.drafter, job.trees) for job in ran[1]} == {("anpd", False)}
        and len(ran[1]) == 4
    )
    kinds = {(outcome.setting.drafter, outcome.setting.trees) for outcome in advice.outcomes}
    assert kinds == {("none", False), ("anpd", True), ("anpd", False), ("prompt-lookup", False)}
    assert len(results) == len(jobs_to_tune) + 4 and len(advice.ngram) == 10
    assert all(outcome.setting.drafter.startswith("vllm-ngram-") for _, outcome in advice.ngram)
    assert json.loads(json.dumps(advice.as_dict()))["vllm"]["suffix"]["measured"] == "no"


def test_dear_rows_make_plain_decoding_best(jobs_to_tune):
    advice, _ = tune(jobs_to_tune, here, parse_costs("linear:1"))
    assert advice.best.setting.drafter == "none" and "decode plainly" in sentences(advice)[0]
    said = sentences(tune(jobs_to_tune, here, parse_costs("flat"))[0])
    assert "--drafter" in said[0] and "prompt_lookup_min" in said[1] and "unmeasured" in said[2]


def test_budgets_beyond_the_costs_are_left_out_or_refused():
    costs = CostCurve({1: 1.0, 8: 2.0})
    assert affordable(None, costs) == [2, 4, 7] and affordable([1, 7], costs) == [1, 7]
    with pytest.raises(ForetokenError, match="8 drafted tokens need 9"):
        affordable([2, 8], costs)
    with pytest.raises(ForetokenError, match="2 drafted tokens need 3"):
        affordable(None, CostCurve({1: 1.0, 2: 2.0}))
    with pytest.raises(ForetokenError, match="end at 1 rows"):
        affordable(None, CostCurve({1: 1.0}))


def test_logs_without_answers_are_refused(tmp_path):
    path = write_log(tmp_path / "a.jsonl", [{"prompt": "a", "output": "b"}])
    reading = Reading(str(write_tokenizer(tmp_path / "tokenizer.json")))
    with pytest.raises(ForetokenError, match="no answer to replay"):
        tune(make_jobs([path], None, [2], True, reading), here, parse_costs("flat"))
