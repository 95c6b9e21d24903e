"""The corpus that comes with the package, in the cache of a user."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foretoken import ForetokenError
from foretoken.memory.corpus import general
from foretoken.memory.corpus.general import general_background, general_folder, phrases
from foretoken.memory.fingerprint import fingerprint
from foretoken.ngrams.background import INDEX, META, ROWS
from foretoken.tokenizing import batch_encoder, load_tokenizer

TINY = load_tokenizer("tiny")
ENCODE, MARK = batch_encoder(TINY), fingerprint(TINY)


@pytest.fixture
def few(monkeypatch):
    """A corpus of a few phrases, so that a build is quick."""
    monkeypatch.setattr(
        general, "phrases", lambda: ["def main():", "once upon a time there was", "for i in range(10):"]
    )


def never(texts: list[str]) -> list[list[int]]:
    raise AssertionError("the corpus is there already")


def test_it_is_cut_once_by_a_models_tokenizer():
    """Where the cache is, so that later tests with this tokenizer find it there, too."""
    background = general_background(ENCODE, MARK)
    assert background.meta["documents"] == len(phrases()) > 10_000 and background.meta["fingerprint"] == MARK
    ids = ENCODE(["for i in range"])[0]
    assert ids[-1] in [token for token, *_ in background.successors(ids[:-1])[1]]
    assert general_background(never, MARK).nbytes == background.nbytes


@pytest.mark.parametrize("name", [META, ROWS, INDEX])
@pytest.mark.parametrize("damage", [b"", b"{", b"{}", None])
def test_a_damaged_cache_is_made_again(few, tmp_path, name, damage):
    folder = general_folder(ENCODE, MARK, tmp_path)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
    assert general_folder(ENCODE, MARK, tmp_path) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b"[]", b'{"source": "x"}'])
@pytest.mark.parametrize("name", ["inputs.json", "state.json", "other.json"])
def test_a_damaged_unfinished_build_is_begun_anew(few, tmp_path, name, damage):
    def killed(texts: list[str]) -> list[list[int]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        general_folder(killed, MARK, tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (folder / "partial" / name).write_bytes(damage)
    assert general_background(ENCODE, MARK, tmp_path).meta["documents"] == 3
    assert not (folder / "partial").exists()


def test_two_processes_make_one(tmp_path):
    code = (
        "import sys; from pathlib import Path; from foretoken.memory.corpus import general; import test_general as t\n"
        "general.phrases = lambda: ['def main():', 'once upon a time']\n"
        "print(general.general_background(t.ENCODE, t.MARK, Path(sys.argv[1])).meta['documents'])"
    )
    command, env = [sys.executable, "-c", code, str(tmp_path)], os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        assert process.communicate(timeout=600) == (b"2\n", b"") and process.returncode == 0
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("where", ["os.replace", "pathlib.Path.mkdir"])
def test_a_cache_that_cannot_be_written_is_a_sentence(few, tmp_path, monkeypatch, error, where):
    def fail(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(ForetokenError, match=r"disk is full|Permission denied|No space|Read-only"):
            general_folder(ENCODE, MARK, tmp_path / "cache")
    assert general_background(ENCODE, MARK, tmp_path / "cache").meta["documents"] == 3


def test_a_cache_that_may_not_be_written_but_holds_the_corpus_is_read(few, tmp_path, monkeypatch):
    folder = general_folder(ENCODE, MARK, tmp_path)
    monkeypatch.setattr("pathlib.Path.mkdir", never)
    assert general_folder(never, MARK, tmp_path) == folder


def test_a_tokenizer_too_big_is_a_sentence(few, tmp_path):
    with pytest.raises(ForetokenError, match="use a tokenizer with at most 1048576"):
        general_folder(lambda texts: [[1, 2**20]] * len(texts), MARK, tmp_path)


def test_a_relative_cache_is_ignored(few, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert general_folder(ENCODE, MARK).parent == tmp_path / "home" / ".cache" / "foretoken"
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda _: b"", lambda _: b"text", None])
def test_a_damaged_package_is_a_sentence(tmp_path, monkeypatch, damage):
    if damage:
        (tmp_path / "general.txt.xz").write_bytes(damage(general.PACKED.read_bytes()))
    monkeypatch.setattr(general, "PACKED", tmp_path / "general.txt.xz")
    with pytest.raises(ForetokenError, match=r"The package's general corpus .*: install foretoken again"):
        general_folder(ENCODE, MARK, tmp_path / "cache")


@pytest.mark.parametrize(
    "state", ["[]", '{"foo": 1}', '{"source": 9}', '{"tokens": 10, "tokenized": true}', "[" * 99999]
)
def test_an_unfinished_build_that_cannot_be_is_begun_anew(few, tmp_path, state):
    def killed(texts: list[str]) -> list[list[int]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        general_folder(killed, MARK, tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (folder / "partial" / "state.json").write_text(state)
    assert general_background(ENCODE, MARK, tmp_path).meta["documents"] == 3


def test_another_process_is_not_waited_for_without_end(few, tmp_path, monkeypatch):
    monkeypatch.setattr(general, "MAX_WAIT", 0.1)
    monkeypatch.setattr(general, "lock", lambda handle: False)
    with pytest.raises(ForetokenError, match="Another process has been building"):
        general_folder(ENCODE, MARK, tmp_path)
