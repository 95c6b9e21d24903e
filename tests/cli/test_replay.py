"""``foretoken replay`` and ``foretoken tune`` as a person meets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from foretoken.memory.corpus.build import build
from helpers.commanding import call
from helpers.logs import rows, write_log, write_tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    return write_tokenizer(tmp_path / "tokenizer.json")


@pytest.fixture
def run(monkeypatch, capsys, tokenizer):
    """Run a command here; (exit status, standard output, standard error)."""

    def run(command: str, *arguments: object) -> tuple[int, str, str]:
        corpus = [] if "--background" in arguments else ["--background", "none"]
        words = [command, "--tokenizer", tokenizer, "--jobs", 1, *corpus, *arguments]
        return call(monkeypatch, capsys, *words)

    return run


@pytest.fixture
def log(tmp_path):
    return write_log(tmp_path / "a.jsonl", rows(6))


KEYS = {"file", "drafter", "budget", "tokens", "steps", "tokens_per_step", "drafted_per_step", "accept_rate"}
KEYS |= {"draft_us", "update_us_per_token"}


def test_replay_prints_a_table_and_writes_the_numbers(run, log, tmp_path):
    write_log(tmp_path / "b.jsonl", [*rows(2), {"prompt": 1}, {"output": "x"}])
    arguments = [
        "--budget",
        2,
        "--budget",
        5,
        "--drafter",
        "anpd",
        "--drafter",
        "none",
        "--json",
        tmp_path / "x/r.json",
    ]
    status, out, err = run("replay", log, tmp_path / "b.jsonl", *arguments)
    assert status == 0 and "all" in out and "anpd" in out and "accept" in out
    assert "b.jsonl: skipped 2: line 3: it has no 'output'; line 4: it has no 'prompt'" in err
    found = json.loads((tmp_path / "x/r.json").read_text())
    assert all(row.keys() == KEYS for row in found["rows"]) and len(found["rows"]) == 2 * 2 * 2
    assert [row["file"] for row in found["rows"]] == ["a.jsonl"] * 4 + ["b.jsonl"] * 4
    assert found["provenance"].keys() >= {"foretoken", "commit", "processor", "limit", "verifies", "tokenizer"}
    assert found["skipped"][0] == {"file": "b.jsonl", "line": 3, "reason": "it has no 'output'"}
    assert found["calibration"] == [] and {row["task"] for row in found["tasks"]} == {"kind 0", "kind 1"}


def test_replay_limits_what_it_reads(run, log, tmp_path):
    arguments = ["--drafter", "anpd", "--limit", 2, "--max-output", 20, "--max-prompt", 3, "--chains"]
    assert run("replay", log, *arguments, "--json", tmp_path / "r.json")[0] == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["rows"][0]["tokens"] == 40 and found["provenance"]["verifies"] == "chains"


@pytest.mark.skipif(find_spec("plotly") is None, reason="needs plotly")
def test_tune_says_what_to_use(run, log, tmp_path):
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps({"rows": [1, 5], "milliseconds": [10, 11]}))
    outputs = ["--json", tmp_path / "t.json", "--html", tmp_path / "t.html"]
    status, out, _ = run("tune", log, "--drafter", "anpd", "--costs", costs, *outputs)
    assert status == 0 and "Use --drafter anpd --budget 4 (chains): expect " in out
    found = json.loads((tmp_path / "t.json").read_text())
    best = found["best"]
    assert best["low"] < best["speed"] < best["high"] and (best["drafter"], best["budget"]) == ("anpd", 4)
    assert {row["budget"] for row in found["settings"]} == {0, 2, 4} and found["provenance"]["seed"] == 0
    assert found["vllm"]["ngram"][0]["config"]["method"] == "ngram"
    assert "<html" in (tmp_path / "t.html").read_text()[:100]
    assert run("replay", log, "--html", tmp_path / "r.html")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replay", "nothing.jsonl"], "'nothing.jsonl' could not be read: No such file"),
        (["replay", "LOG", "--drafter", "magic"], "no drafter named 'magic'"),
        (["replay", "LOG", "--tokenizer", "EMPTY"], "no tokenizer"),
        (["replay", "LOG", "--background", "EMPTY"], "no finished background corpus"),
        (["replay", "LOG", "--background", "CORPUS"], "built with another tokenizer"),
        (["tune", "LOG", "--costs", "flat", "--background", "CORPUS"], "built with another tokenizer"),
        (["replay", "BAD"], "no answer to replay: 1 lines are unusable, 1 answers have under 16 tokens"),
        (["replay", "LOG", "--json", "tokenizer.json/x"], "could not be written"),
        (["tune", "LOG", "--costs", "steep"], "no file 'steep' of costs; costs are"),
        (["tune", "BAD", "--costs", "flat"], "There is no answer to replay"),
        (["tune", "nothing.jsonl", "--costs", "flat"], "No such file"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_status_2(run, log, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    bad = write_log(tmp_path / "bad.jsonl", [{"prompt": "only"}, {"prompt": "p", "output": "short"}])
    (tmp_path / "empty").mkdir()
    build([[1, 2, 3]], None, "another", tmp_path / "corpus")
    files = {"LOG": log, "BAD": bad, "EMPTY": tmp_path / "empty", "CORPUS": tmp_path / "corpus"}
    words = [files.get(word, word) for word in arguments]
    status, out, err = run(*words)
    sentence = [line for line in err.splitlines() if line.startswith("foretoken: ")]
    assert status == 2 and len(sentence) == 1 and said in sentence[0] and out == ""


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "outputs",
    [
        ["--json", "a.jsonl"],
        ["--json", "link"],
        ["--json", "tokenizer.json"],
        ["--json", "costs.json"],
        ["--json", "r", "--html", "r"],
        ["--json", "old.json", "--html", "old"],
    ],
)
def test_an_output_is_no_input_and_no_other_output(run, log, tmp_path, monkeypatch, outputs):
    pytest.importorskip("plotly")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("a.jsonl")
    (tmp_path / "old.json").write_text("old")
    (tmp_path / "old").symlink_to("old.json")
    (tmp_path / "costs.json").write_text(json.dumps({"rows": [1, 99], "milliseconds": [1, 2]}))
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    status, out, err = run("tune", "a.jsonl", "--costs", "costs.json", "--drafter", "anpd", *outputs)
    assert status == 2 and out == "" and ("is read by this command" in err or "Two files would be written" in err)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_a_run_that_fails_leaves_nothing_and_the_old_report(run, log, tmp_path):
    (tmp_path / "old.json").write_text("old")
    (tmp_path / "empty").mkdir()
    before = names(tmp_path)
    assert run("replay", log, "--tokenizer", tmp_path / "empty", "--json", tmp_path / "new/dir/r.json")[0] == 2
    assert run("replay", log, "--tokenizer", tmp_path / "empty", "--json", tmp_path / "old.json")[0] == 2
    assert names(tmp_path) == before and (tmp_path / "old.json").read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(run, log):
    status, _, err = run("replay", log, "--drafter", "none", "--json", "/dev/full")
    assert status == 2 and "'/dev/full' could not be written: No space left" in err


def test_a_log_from_a_pipe_is_the_file(run, log, tmp_path):
    def settings(name: str) -> list[tuple[str, int, bool, float]]:
        found = json.loads((tmp_path / name).read_text())["settings"]
        return sorted((row["drafter"], row["budget"], row["trees"], row["speed"]) for row in found)

    words = ["--costs", "flat", "--drafter", "anpd", "--drafter", "ngram", "--background", "none", "--json"]
    assert run("tune", log, *words, tmp_path / "file.json")[0] == 0
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[log.read_bytes()], daemon=True)
    writer.start()
    assert run("tune", pipe, *words, tmp_path / "pipe.json")[0] == 0
    writer.join()
    assert settings("pipe.json") == settings("file.json")


def test_names_of_files_do_not_reach_the_terminal_as_they_are(run, tmp_path):
    log = write_log(tmp_path / "a\x1b[31m[red].jsonl", [*rows(2), {"prompt": 1}])
    status, out, err = run("replay", log, "--drafter", "none", "--json", tmp_path / "r\x1b[2J.json")
    assert status == 0 and "\x1b" not in out + err and "a\\x1b[31m[red]" in err and "a\\x1b[31m[red]" in out


def test_a_file_name_that_is_no_text_is_reported_as_json_writes_it(run, tmp_path):
    log = write_log(tmp_path / os.fsdecode(b"\xff.jsonl"), rows(2))
    assert run("replay", log, "--drafter", "none", "--json", tmp_path / "r.json")[0] == 0
    assert json.loads((tmp_path / "r.json").read_text())["rows"][0]["file"] == "\udcff.jsonl"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes as Linux lists them")
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("after", [0.2, 1.5])  # while the workers start, and while they work
def test_an_interrupt_ends_all_processes_quietly(tmp_path, tokenizer, after):
    log = write_log(tmp_path / "a.jsonl", rows(3000, 400))
    budgets = [word for budget in range(1, 41) for word in ("--budget", budget)]  # more work than any machine can do
    words = ["replay", log, "--tokenizer", tokenizer, *budgets, "--jobs", 2]
    process = subprocess.Popen(
        [sys.executable, "-m", "foretoken", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 600
    while len(children.read_text().split()) < 3:  # two workers and Python's resource tracker
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out) == (130, "") and "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
