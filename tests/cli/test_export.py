"""``foretoken export``: files for other engines."""

from __future__ import annotations

import sys

import pytest

from helpers.commanding import call


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *words: call(monkeypatch, capsys, "export", "gguf", *words)


def test_a_file_is_written_with_its_folder_and_named(run, tmp_path):
    path = tmp_path / "new" / "tiny.gguf"
    status, out, err = run("--model", "tiny", "--output", path, "--type", "q8_0")
    assert (status, out) == (0, "") and f"written to {path}" in err
    assert path.read_bytes()[:4] == b"GGUF" and [file.name for file in path.parent.iterdir()] == ["tiny.gguf"]


def test_what_is_refused_ends_with_one_sentence(run, tmp_path, model_folder):
    for words in (
        ("--model", "tiny", "--output", tmp_path, "--type", "f32"),
        ("--model", "tiny", "--output", tmp_path / "x", "--type", "q5_k"),
        ("--model", model_folder, "--output", tmp_path / "x", "--type", "f32"),
        ("--model", "./none", "--output", tmp_path / "x", "--type", "f32"),
        ("--output", tmp_path / "x"),
    ):
        status, out, err = run(*words)
        assert (status, out) == (2, "") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_command_that_installs_it(run, tmp_path, monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == "gguf" or name.startswith("foretoken.export."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    status, _, err = run("--model", "tiny", "--output", tmp_path / "x", "--type", "f32")
    assert status == 2 and err == "foretoken: This needs gguf: pip install 'foretoken[gguf]'.\n"
