from __future__ import annotations

import re
from dataclasses import replace

import pytest

from foretoken import ForetokenError
from foretoken.replay.costs import parse_costs
from foretoken.replay.run import run_jobs
from foretoken.replay.tune import tune
from foretoken.reports import replay as report
from foretoken.reports.page import require_report

pytest.importorskip("plotly")


def assert_needs_nothing(page: str) -> None:
    """No script, style or picture from elsewhere; one plotly for all plots."""
    assert not re.search(r"<(script|img|iframe)[^>]*\ssrc=|<link", page)
    assert page.count("plotly.js v") == 1


def test_the_page_of_replay(jobs_to_tune):
    results = run_jobs(jobs_to_tune, 1)
    page = report.replay_page(results)
    assert_needs_nothing(page)
    assert page.count("Plotly.newPlot(") >= 3
    for said in ("kind 0", "kind 1", "prompt-lookup", "expected error", "13 answers of 2 files"):
        assert said in page
    chains = [result for result in results if not result.reliability.as_dict()["nodes"]]
    assert "No drafter here gives probabilities." in report.replay_page(chains)


def test_the_page_of_tune(jobs_to_tune):
    advice, results = tune(jobs_to_tune, lambda some: run_jobs(some, 1), parse_costs("flat"))
    page = report.tune_page(advice, results, "<flat>")
    assert_needs_nothing(page)
    assert "&lt;flat&gt;" in page and "emulated" in page and "anpd, trees" in page


def test_names_from_a_log_are_no_markup(jobs_to_tune):
    results = run_jobs(jobs_to_tune, 1)
    for result in results:
        result.items = [replace(item, task='<a href="http://there">click</a>') for item in result.items]
    page = report.replay_page(results)
    assert "\\u0026lt;a href=" in page or "&lt;a href=" in page
    assert "\\u003ca href=" not in page and "<a href=" not in page.split("</script>")[-1]


def test_figures_by_task_add_up(jobs_to_tune):
    results = run_jobs(jobs_to_tune, 1)
    tasks = report.tasks(results)
    assert {row["task"] for row in tasks} == {"kind 0", "kind 1"}
    assert sum(row["tokens"] for row in tasks) == sum(result.row()["tokens"] for result in results)
    assert {row["drafter"] for row in report.calibration(results)} == {"anpd"}


@pytest.mark.parametrize("missing", ["plotly", "jinja2"])
def test_what_is_missing_is_named_with_how_to_install_it(monkeypatch, missing):
    monkeypatch.setattr("foretoken.reports.page.find_spec", lambda name: None if name == missing else "there")
    with pytest.raises(ForetokenError, match=rf"needs {missing}: pip install 'foretoken\[report\]'"):
        require_report()
