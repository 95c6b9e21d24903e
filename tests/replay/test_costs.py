from __future__ import annotations

import json

import pytest

from foretoken import ForetokenError
from foretoken.replay.costs import parse_costs


def test_word_forms():
    flat, linear = parse_costs("flat"), parse_costs("linear:0.05")
    assert [flat.seconds(n) for n in (1, 2, 100)] == [1, 1, 1] and flat.most_rows > 1025
    assert [linear.seconds(n) for n in (1, 2, 11)] == pytest.approx([1, 1.05, 1.5])


def test_a_file_is_interpolated_and_ends_where_it_ends(tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"rows": [1, 2, 4, 8], "milliseconds": [10, 12, 12, 20.0]}))
    costs = parse_costs(str(path))
    assert [1000 * costs.seconds(n) for n in range(1, 9)] == pytest.approx([10, 12, 12, 12, 14, 16, 18, 20])
    assert costs.most_rows == 8


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"rows": [1, 2], "milliseconds": [1, ' + "9" * 5000 + "]}", "not JSON"),
        ('{"rows": [1, 2], "milliseconds": [1, ' + "9" * 400 + "]}", "equally long"),
        ('{"rows": [1, 2], "milliseconds": [1, 1e308]}', "equally long"),
        ('{"rows": [1, 2], "milliseconds": [1e-320, 1]}', "equally long"),
        ('{"rows": [1, 2], "milliseconds": [1, Infinity]}', "equally long"),
        ('{"rows": [1, 2], "milliseconds": [1, -2]}', "equally long"),
        ('{"rows": [], "milliseconds": []}', "equally long"),
        ('{"rows": [0, 1], "milliseconds": [1, 2]}', "equally long"),
        ('{"rows": [1, 4, 2], "milliseconds": [1, 2, 3]}', "rise from 1"),
        (" " * (1 << 20) + "{}", "more than 1048576 characters"),
        ("[1, 2]", "equally long"),
        ('{"rows": [1, 2]}', "equally long"),
        ('{"rows": [1, 2], "milliseconds": [1]}', "equally long"),
        ('{"rows": [1, 2], "milliseconds": [1, "2"]}', "equally long"),
        ('{"rows": [1, 2], "milliseconds": [1, NaN]}', "equally long"),
        ('{"rows": [1, 2], "milliseconds": [1, 0]}', "equally long"),
        ('{"rows": [2, 3], "milliseconds": [1, 2]}', "rise from 1"),
        ('{"rows": [1, 3, 3], "milliseconds": [1, 2, 3]}', "rise from 1"),
        ('{"rows": [1, 2.5], "milliseconds": [1, 2]}', "rise from 1"),
    ],
)
def test_files_that_say_nothing_are_refused(tmp_path, content, said):
    (tmp_path / "costs.json").write_text(content)
    with pytest.raises(ForetokenError, match=said):
        parse_costs(str(tmp_path / "costs.json"))


@pytest.mark.parametrize(
    "form",
    [
        "linear",
        "linear:",
        "linear:x",
        "linear:-1",
        "linear:nan",
        "linear:inf",
        "linear:1e308",
        "x" * 300,
        "nowhere.json",
    ],
)
def test_forms_that_do_not_exist_are_refused(form):
    with pytest.raises(ForetokenError, match=r"linear:0\.05"):
        parse_costs(form)


def test_a_file_is_read_by_its_byte_order_mark(tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"rows": [1, 2], "milliseconds": [1, 2]}), encoding="utf-16")
    assert parse_costs(str(path)).seconds(2) == 0.002
