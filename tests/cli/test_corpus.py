"""``foretoken corpus`` as a person meets it."""

from __future__ import annotations

import gzip
import json
import lzma

import pytest

from foretoken.memory.corpus import tokens as tokens_module
from foretoken.memory.fingerprint import fingerprint
from foretoken.ngrams.background import Background
from foretoken.tokenizing import load_tokenizer
from helpers.commanding import call

ENCODE = load_tokenizer("tiny").encode


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``foretoken corpus``; (exit status, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        return call(monkeypatch, capsys, "corpus", *arguments)

    return run


@pytest.fixture
def build(run, tmp_path):
    def build(*files: object, model: object = "tiny", to: object = tmp_path / "store") -> tuple[int, str, str]:
        return run("build", *files, "--model", model, "-o", to)

    return build


def follows(store, text):
    """Whether the store has seen each token of ``text`` follow the ones before it."""
    ids = ENCODE(text).ids
    background = Background.open(store, fingerprint(load_tokenizer("tiny")))
    return all(ids[i] in {t for t, *_ in background.successors(ids[:i])[-1]} for i in range(1, len(ids)))


def test_texts_and_logs_of_every_kind_are_read(build, run, tmp_path):
    (tmp_path / "a.txt").write_bytes("Once upon a time\r\nthere was a café".encode())
    (tmp_path / "b.py").write_text("def area(width):\n    return width\n")
    (tmp_path / "c.md.gz").write_bytes(gzip.compress(b"# The title of the page"))
    rows = [{"output": "The answer is four.", "text": "not this"}, {"text": "A row of text only."}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b'{"output": "packed with gzip"}\n'))
    (tmp_path / "f.jsonl.xz").write_bytes(lzma.compress(b'{"output": "packed with another"}'))
    status, out, err = build(*sorted(tmp_path.iterdir()))
    assert (status, out) == (0, "")
    assert "7 documents, " in err and " bytes per token" in err
    for text in (
        "Once upon a time\r\nthere was a café",
        "def area(width):\n    return width\n",
        "# The title of the page",
        "The answer is four.",
        "A row of text only.",
        "packed with gzip",
        "packed with another",
    ):
        assert follows(tmp_path / "store", text)
    assert not follows(tmp_path / "store", "not this")
    status, out, _ = run("info", tmp_path / "store", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["documents"] == 7 and facts["min_count"] == 1
    assert facts["bytes_per_token"] == pytest.approx(facts["bytes"] / facts["tokens"], abs=0.001)
    status, out, _ = run("info", tmp_path / "store")
    assert status == 0 and str(facts["rows"]) in out and facts["fingerprint"] in out


def test_bad_lines_are_passed_over_and_named(build, tmp_path):
    lines = [
        b'{"output": "The answer is four."}',
        b"{",
        b"",
        b"[]",
        b'{"output": null}',
        b'{"other": "x"}',
        b'{"text": 3}',
    ]
    lines += [b'{"text": "\xff"}', b'{"output": "half \\ud83d of a pair"}']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    status, _, err = build(tmp_path / "log.jsonl")
    assert status == 0 and "2 documents" in err
    assert "log.jsonl: 6 lines passed over, since they are not JSON with output or text: 2, 4, 5, 6, 7, 8\n" in err
    assert follows(tmp_path / "store", "The answer is four.")


def test_many_bad_lines_are_not_all_listed(build, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"text": "a b c d"}\n' + "no\n" * 40)
    _, _, err = build(tmp_path / "log.jsonl")
    assert "40 lines passed over" in err and "10, 11, ..\n" in err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\xe9t\xe9", "is not UTF-8 text; save it as UTF-8, or leave it out"),
        ("a.txt.gz", b"text", "is no .gz archive"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:30], "is damaged"),
        ("a.jsonl.xz", lzma.compress(b'{"text": "a"}\n' * 99)[:60], "is damaged"),
        ("a.jsonl", b"no\nno\n", "(2 lines were passed over, since they are not JSON with output or text)"),
        ("a.txt", b"", "give more text"),
    ],
)
def test_files_that_cannot_be_used_are_a_sentence(build, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    status, _, err = build(tmp_path / name)
    assert status == 2 and words in err


def test_missing_files_folders_and_models_are_a_sentence(build, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for arguments, words in (
        ((build, tmp_path / "none.txt"), "No such file"),
        ((build, tmp_path), "is not a file: give files"),
    ):
        call, *rest = arguments
        status, _, err = call(*rest)
        assert status == 2 and words in err
    status, _, err = build(tmp_path / "a.txt", model=tmp_path / "none")
    assert status == 2 and "none" in err
    assert not (tmp_path / "store").exists()


def test_the_store_of_another_is_not_touched(build, run, tmp_path):
    (tmp_path / "a.txt").write_text("text to build from")
    status, _, err = build(tmp_path / "a.txt", to=tmp_path)
    assert status == 2 and "holds something else" in err
    assert build(tmp_path / "a.txt")[0] == 0
    status, _, err = build(tmp_path / "a.txt")
    assert status == 2 and "holds a store already" in err
    assert build(tmp_path / "a.txt", "--force")[0] == 0
    status, _, err = run("info", tmp_path / "none")
    assert status == 2 and "There is no background corpus" in err


def test_a_stopped_build_goes_on_and_a_changed_file_is_refused(build, tmp_path, monkeypatch):
    files = [tmp_path / f"{i}.txt" for i in range(4)]
    for i, path in enumerate(files):
        path.write_text(f"This is text number {i} of a few. " * 5)
    assert build(*files, to=tmp_path / "whole")[0] == 0
    monkeypatch.setattr(tokens_module, "BATCH", 1)
    real, saves = tokens_module.save, []

    def save(*arguments):
        real(*arguments)
        saves.append(arguments)
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(tokens_module, "save", save)
    assert build(*files)[0] == 130
    assert build(*files, model="tiny")[0] == 0
    for name in ("meta.json", "index.npy", "rows.npy"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    saves.clear()
    assert build(*files, to=tmp_path / "third")[0] == 130
    files[0].write_text("changed")
    status, _, err = build(*files, to=tmp_path / "third")
    assert status == 2 and "0.txt', which has changed since" in err
    assert build(*files, "--force", to=tmp_path / "third")[0] == 0


def test_a_vocabulary_too_big_is_refused(build, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr("foretoken.ngrams.background.MAX_VOCABULARY", 100)
    status, _, err = build(tmp_path / "a.txt")
    assert status == 2 and "has room for 100" in err
