from __future__ import annotations

import dataclasses
import os
import socket
import sys
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from foretoken import Draft, ForetokenError
from foretoken.drafters import Anpd, PromptLookup
from foretoken.replay.plan import make_jobs
from foretoken.replay.read import Reading, read_log
from foretoken.replay.run import run_jobs
from helpers.drafting import Making, Stateless
from helpers.logs import rows, write_log, write_tokenizer


@pytest.fixture
def jobs(tmp_path):
    files = [write_log(tmp_path / name, rows(count)) for name, count in (("a.jsonl", 4), ("b.jsonl", 2))]
    return make_jobs(files, None, [3, 10], True, Reading(str(write_tokenizer(tmp_path / "tokenizer.json"))))


def counts(results):
    return [
        (
            result.job.label,
            result.job.drafter,
            [
                dataclasses.replace(item.stats, seconds=0, prefill_seconds=0, draft_seconds=0, _started=0)
                for item in result.items
            ],
            [item.rows for item in result.items],
        )
        for result in results
    ]


class Broken(Stateless):
    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        raise IndexError("out of its depth")


class Deadly(Stateless):
    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        os._exit(3)


def test_the_scores_do_not_depend_on_where_jobs_run(jobs):
    told = []
    here = run_jobs(jobs, processes=1, done=told.append)
    assert told == jobs == [result.job for result in here] and read_log.cache_info().currsize == 0
    told.clear()
    there = run_jobs(jobs, processes=2, done=told.append)
    assert counts(there) == counts(here) and len(told) == len(jobs) == 2 * 2 * len({job.drafter for job in jobs})


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failing_drafter_ends_the_run_in_one_sentence(jobs, processes):
    jobs[3] = dataclasses.replace(jobs[3], recipe=Making(Broken))
    with pytest.raises(ForetokenError, match=r"^The drafter '.*' failed on a.jsonl: IndexError: out of its depth\.$"):
        run_jobs(jobs, processes)


def test_a_process_that_dies_ends_the_run_in_one_sentence(jobs):
    jobs[0] = dataclasses.replace(jobs[0], recipe=Making(Deadly))
    with pytest.raises(ForetokenError, match="A process that replays died"):
        run_jobs(jobs, 2)


def test_a_missing_tokenizer_ends_the_run_in_one_sentence(jobs, tmp_path):
    (tmp_path / "empty").mkdir()
    reading = Reading(str(tmp_path / "empty"))
    with pytest.raises(ForetokenError, match="holds no tokenizer"):
        run_jobs([dataclasses.replace(job, reading=reading) for job in jobs], 2)


class FakeRay(SimpleNamespace):
    """As much of Ray as is used, in this process."""

    class RayError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__(addresses=[], stopped=0, exceptions=SimpleNamespace(RayError=self.RayError))

    def init(self, address: str, **options: object) -> None:
        if address == "nowhere:1":
            raise ConnectionError("no such\ncluster.")
        self.addresses.append(address)

    def shutdown(self) -> None:
        self.stopped += 1

    def remote(self, function):
        class Task:
            def __init__(self, job):
                self.job = job

            def run(self):
                return function(self.job)

        return SimpleNamespace(remote=Task)

    def wait(self, tasks, num_returns):
        return tasks[-num_returns:], tasks[:-num_returns]  # not in their order

    def get(self, task):
        if task.job.recipe == Making(Deadly):
            raise self.RayError("a page\nof things\nthe worker died.")
        return task.run()


def test_ray_runs_the_same_jobs(jobs, monkeypatch):
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(socket, "create_connection", lambda *where, timeout: SimpleNamespace(close=lambda: None))
    assert counts(run_jobs(jobs, ray_address="head:6379")) == counts(run_jobs(jobs, 1))
    assert ray.addresses == ["head:6379"] and ray.stopped == 1
    with pytest.raises(ForetokenError, match=r"no Ray cluster to use at 'nowhere:1': no such cluster\.$"):
        run_jobs(jobs, ray_address="nowhere:1")
    with pytest.raises(ForetokenError, match=r"^The drafter 'prompt-lookup' failed on b.jsonl: IndexError.*\.$"):
        run_jobs(
            [dataclasses.replace(job, recipe=Making(Broken)) for job in jobs if job.label == "b.jsonl"][-1:],
            None,
            "head:1",
        )
    with pytest.raises(ForetokenError, match=r"^A task on the Ray cluster failed: the worker died\.$"):
        run_jobs([dataclasses.replace(jobs[0], recipe=Making(Deadly))], None, "head:1")
    assert ray.stopped == 3


def test_a_cluster_that_does_not_answer_is_refused_at_once(jobs, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nobody listens
        for scheme in ("", "ray://"):
            with pytest.raises(ForetokenError, match="nobody answers there"):
                run_jobs(jobs, ray_address=f"{scheme}127.0.0.1:{free.getsockname()[1]}")


def test_ray_is_asked_for_where_it_is_missing(jobs, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ForetokenError, match=r"pip install 'foretoken\[ray\]'"):
        run_jobs(jobs, ray_address="head:6379")


def test_jobs_name_files_by_their_names_where_these_differ(tmp_path):
    (tmp_path / "x").mkdir()
    files = [write_log(tmp_path / name, rows(1)) for name in ("a.jsonl", "x/a.jsonl", "b.jsonl")]
    jobs = make_jobs([*files, files[0]], ["anpd", "prompt-lookup", "anpd"], [2, 2], False, Reading(""))
    assert [job.label for job in jobs[::2]] == [str(files[0]), str(files[1]), "b.jsonl"]
    assert [job.recipe for job in jobs] == [Anpd(), PromptLookup()] * 3
    assert jobs[-1].title == "b" and not jobs[0].trees
    assert make_jobs(files[:1], ["none"], [2], True, Reading(""))[0].recipe is None


def test_jobs_refuse_what_is_not_there(tmp_path):
    with pytest.raises(ForetokenError, match="'nothing' could not be read: No such file"):
        make_jobs([tmp_path.relative_to(tmp_path) / "nothing"], None, [1], True, Reading(""))
    with pytest.raises(ForetokenError, match="no drafter named 'magic'"):
        make_jobs([write_log(tmp_path / "a.jsonl", rows(1))], ["magic"], [1], True, Reading(""))
    for name in ("mixed", "recycle", "lookahead", "early-exit", "draft-model:model=any"):
        with pytest.raises(ForetokenError, match=rf"^The drafter '{name.partition(':')[0]}' .* recorded"):
            make_jobs([write_log(tmp_path / "a.jsonl", rows(1))], [name], [1], True, Reading(""))


def test_jobs_take_drafters_with_options(tmp_path):
    files = [write_log(tmp_path / "a.jsonl", rows(1))]
    jobs = make_jobs(files, ["anpd", "anpd:max_order=3", "anpd:max_order=5"], [1], True, Reading(""))
    assert [job.drafter for job in jobs] == ["anpd", "anpd:max_order=3"], "5 is the default, so that it is the same"
    assert jobs[1].new_drafter(jobs[1].new_namespace()).max_order == 3
