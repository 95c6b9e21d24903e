"""What a model's forwards cost, kept from one process to the next."""

from __future__ import annotations

import json
import os

import pytest

from foretoken.core.costs import CostCurve
from foretoken.engines.toy import ToyTarget
from foretoken.memory import costs as kept
from foretoken.memory.costs import costs_of, keep_costs, read_costs, write_costs
from foretoken.replay.costs import parse_costs

KEY = "a model, float32, on a processor"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder, and a process that knows nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kept, "_KNOWN", {})
    return tmp_path / "foretoken" / "costs"


class Counting:
    """Gives targets, and counts them: one is asked for to measure with."""

    def __init__(self) -> None:
        self.given = 0

    def __call__(self) -> ToyTarget:
        self.given += 1
        return ToyTarget()


def next_process() -> None:
    kept._KNOWN.clear()


def test_a_model_is_measured_once_for_all_processes(folder):
    targets = Counting()
    first = costs_of(KEY, targets)
    assert costs_of(KEY, targets) is first and targets.given == 1 and first.most_rows > 1
    next_process()
    assert costs_of(KEY, targets).as_dict() == pytest.approx(first.as_dict()) and targets.given == 1
    costs_of(KEY + "s", targets)
    assert targets.given == 2, "another model is another one"


def test_the_file_holds_numbers_alone_and_tune_reads_it(folder):
    curve = costs_of(KEY, ToyTarget)
    (path,) = folder.iterdir()
    fields = json.loads(path.read_text())
    assert set(fields) == {"rows", "milliseconds"}
    assert all(type(number) in (int, float) for numbers in fields.values() for number in numbers)
    assert "model" not in path.name and parse_costs(str(path)).as_dict() == pytest.approx(curve.as_dict())


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"\xff\xfe", b"[1, 2]", b'{"rows": [1, 2]}', b'{"rows": [2, 1], "milliseconds": [1, 2]}', b"\0" * 99],
)
def test_a_damaged_file_is_measured_again_and_mended(folder, damaged):
    targets = Counting()
    costs_of(KEY, targets)
    (path,) = folder.iterdir()
    path.write_bytes(damaged)
    next_process()
    assert costs_of(KEY, targets).most_rows > 1 and targets.given == 2
    next_process()
    costs_of(KEY, targets)
    assert targets.given == 2


@pytest.mark.parametrize("hindered", ["by a file", "by permissions", "by a folder"])
def test_where_nothing_can_be_written_it_is_measured_in_every_process(folder, hindered):
    targets = Counting()
    if hindered == "by a file":
        folder.parent.write_text("no folder")
    elif hindered == "by permissions":
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        folder.mkdir(parents=True)
        folder.chmod(0o500)
    else:
        costs_of(KEY, targets)
        (path,) = folder.iterdir()
        path.unlink()
        (path / "in the way").mkdir(parents=True)
        targets.given = 0
        next_process()
    for processes in (1, 2):
        assert costs_of(KEY, targets).most_rows > 1
        assert costs_of(KEY, targets) is costs_of(KEY, targets) and targets.given == processes
        next_process()


def test_a_model_that_verifies_no_guess_is_measured_once_too(folder):
    class OneRow(ToyTarget):
        max_draft_depth = 0

    assert list(costs_of(KEY, OneRow).as_dict()) == [1]
    next_process()
    assert list(costs_of(KEY, Counting()).as_dict()) == [1]


def test_costs_that_were_measured_anew_take_the_place_of_others(folder):
    costs_of(KEY, ToyTarget)
    keep_costs(KEY, CostCurve({1: 0.5, 8: 2.0}))
    assert costs_of(KEY, Counting()).as_dict() == {1: 0.5, 8: 2.0}
    next_process()
    assert costs_of(KEY, Counting()).as_dict() == {1: 0.5, 8: 2.0}


def test_what_is_written_is_what_is_read(tmp_path):
    curve = CostCurve({1: 0.0201, 2: 0.0204, 7: 0.03})
    write_costs(tmp_path / "costs.json", curve)
    assert read_costs(tmp_path / "costs.json").as_dict() == pytest.approx(curve.as_dict())
