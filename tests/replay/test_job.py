from __future__ import annotations

from collections.abc import Sequence

import pytest

from foretoken import Draft, ForetokenError, Step
from foretoken.drafters import AdaptiveNgram, PromptLookupDrafter
from foretoken.replay.job import Job, figures, run_job
from foretoken.replay.read import Reading, read_log
from helpers.drafting import Making, Siblings, Stateless
from helpers.logs import rows, write_log, write_tokenizer


@pytest.fixture
def job(tmp_path):
    """A job on a log of five answers."""
    path = write_log(tmp_path / "a.jsonl", rows(5))
    reading = Reading(str(write_tokenizer(tmp_path / "tokenizer.json")))

    def job(kind, budget: int = 10, trees: bool = True) -> Job:
        recipe = None if kind is None else Making(kind)
        return Job(str(path), path.name, "it", recipe, budget, trees, reading)

    return job


class Spy(PromptLookupDrafter):
    """Remembers all that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        spies.append(self)

    def begin(self, prompt: Sequence[int]) -> None:
        super().begin(prompt)
        if hasattr(self, "calls"):
            self.calls.append(("begin", list(prompt)))

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        self.calls.append(("propose", list(context)))
        return super().propose(context, max_tokens)

    def observe(self, step: Step) -> None:
        self.calls.append(("observe", list(step.tokens)))
        super().observe(step)


spies: list[Spy] = []


class Broken(Stateless):
    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        raise KeyError("gone\nastray.")


def test_rows_have_exactly_these_keys(job):
    row = run_job(job(AdaptiveNgram)).row()
    assert list(row) == [
        *("file", "drafter", "budget", "tokens", "steps", "tokens_per_step", "drafted_per_step", "accept_rate"),
        *("draft_us", "update_us_per_token"),
    ]
    assert row["draft_us"] > 0 and row["update_us_per_token"] > 0


def test_the_first_token_of_an_answer_comes_from_the_prefill(job):
    result = run_job(job(AdaptiveNgram))
    row = result.row()
    assert row["tokens"] == 5 * 120 and row["tokens_per_step"] == pytest.approx((600 - 5) / row["steps"])
    assert sum(rows * steps for item in result.items for rows, steps in item.rows.items()) == pytest.approx(
        row["steps"] * (1 + row["drafted_per_step"])
    )
    assert row["tokens_per_step"] > 1 and row["accept_rate"] == pytest.approx(
        (row["tokens_per_step"] - 1) / row["drafted_per_step"]
    )
    plain = run_job(job(None)).row()
    assert (plain["steps"], plain["tokens_per_step"], plain["accept_rate"], plain["draft_us"]) == (595, 1, 0, 0)


def test_a_drafter_sees_committed_tokens_only_and_keeps_its_memory(job):
    spies.clear()
    run_job(job(Spy))
    assert len(spies) == 2  # a throw-away one warms up
    calls = spies[1].calls
    traces = read_log(job(None).path, job(None).reading).traces
    prompts = [list(trace.prompt) for trace in traces]
    assert [what for name, what in calls if name == "begin"] == prompts
    answers: list[list[int]] = []
    for name, what in calls:
        if name == "begin":
            text, start = list(what), len(what)
            answers.append([])
        elif name == "observe":
            text += what
            answers[-1] = text[start:]
        else:
            assert what == text
    assert answers == [list(trace.record) for trace in traces]


def test_chains_are_the_main_branches_of_trees(job):
    trees, chains = run_job(job(Siblings)), run_job(job(Siblings, trees=False))
    assert trees.branched and not chains.branched
    assert figures([chains])["drafted_per_step"] < figures([trees])["drafted_per_step"] <= 3
    assert figures([chains])["tokens_per_step"] <= figures([trees])["tokens_per_step"]
    assert sum(trees.reliability.nodes) > 1000 and not sum(run_job(job(PromptLookupDrafter)).reliability.nodes)


def test_figures_of_several_scores_are_those_of_all_answers(job):
    one = run_job(job(AdaptiveNgram))
    both = figures([one, one])
    assert both["tokens"] == 2 * 600 and both["tokens_per_step"] == one.row()["tokens_per_step"]
    assert both["draft_us"] == pytest.approx(one.row()["draft_us"])


def test_a_drafter_that_fails_is_told_of_in_one_sentence(job):
    with pytest.raises(ForetokenError) as caught:
        run_job(job(Broken))
    assert str(caught.value) == r"The drafter 'it' failed on a.jsonl: KeyError: 'gone\nastray.'."
