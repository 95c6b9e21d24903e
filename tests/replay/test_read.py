from __future__ import annotations

import gzip
import json
import lzma

import pytest

from foretoken import ForetokenError
from foretoken.replay.read import BATCH, Reading, prompt_text, read_log, read_traces
from helpers.logs import LETTERS, rows, write_log, write_tokenizer


def letters(texts):
    return [[ord(letter) for letter in text] for text in texts]


def test_logs_follow_the_convention(tmp_path):
    log = [
        {"prompt": [{"role": "user", "content": "hi"}, {"role": "system", "content": "x"}], "output": "y" * 500},
        {"prompt": "short", "output": "y" * 15},
        {"prompt": "ab" * 3500, "output": "yz" * 8, "task": "t"},
        {"prompt": "late", "output": "y" * 16},
    ]
    found = read_traces(write_log(tmp_path / "a.jsonl", log), letters, Reading("", limit=2))
    first, second = found.traces
    assert prompt_text(log[0]["prompt"]) == "user: hi\nsystem: x"
    assert first.prompt.tolist() == letters(["user: hi\nsystem: x"])[0] and len(first.record) == 400
    assert second.prompt.tolist() == letters(["ab" * 3000])[0] and second.record.tolist() == letters(["yz" * 8])[0]
    assert (first.task, second.task, found.short, found.skipped) == (None, "t", 1, [])


def test_later_turns_come_after_all_text_before_them(tmp_path):
    turn = {"input": [{"role": "tool", "content": "t"}, {"role": "user", "content": "u"}], "output": "B" * 16}
    log = [
        {"prompt": [{"role": "user", "content": "q"}], "output": "A" * 16, "followups": [turn, turn]},
        {"prompt": "p>", "output": "A" * 16, "followups": [turn]},
    ]
    path = write_log(tmp_path / "a.jsonl", log)

    def texts(reading):
        return ["".join(map(chr, trace.prompt)) for trace in read_traces(path, letters, reading).traces]

    assert texts(Reading("")) == ["user: q", "p>"]
    a, b = "A" * 16, "B" * 16
    second = f"user: q\nassistant: {a}\ntool: t\nuser: u"
    expected = ["user: q", second, f"{second}\nassistant: {b}\ntool: t\nuser: u", "p>", f"p>{a}\ntool: t\nuser: u"]
    assert texts(Reading("", followups=True)) == expected
    assert texts(Reading("", followups=True, limit=2)) == expected[:2]


def test_bad_lines_are_skipped_and_named(tmp_path):
    good = json.dumps({"prompt": "p", "output": "y" * 16}).encode()
    lines = [
        good,
        b"{",
        b"",
        b'"text"',
        b'{"prompt": "p"}',
        b'{"output": "o", "prompt": null}',
        b'{"prompt": 7, "output": "o"}',
        b'{"prompt": [{"role": "user"}], "output": "o"}',
        b'{"prompt": [{"role": "user", "content": [1]}], "output": "o"}',
        b'{"prompt": "p", "output": ["o"]}',
        b'{"prompt": "p", "output": "\\ud800"}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"prompt": "p", "output": "o", "followups": [{"input": [], "output": 3}]}',
        json.dumps({"prompt": "", "output": "y" * 16}).encode(),
        good,
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    log = read_traces(path, letters, Reading("", followups=True))
    assert len(log.traces) == 2 and log.short == 0
    assert dict(log.skipped) == {
        2: "it is not JSON",
        4: "it is not a JSON object",
        5: "it has no 'output'",
        6: "it has no 'prompt'",
        7: "its prompt is neither a text nor a list of messages with role and content",
        8: "its prompt is neither a text nor a list of messages with role and content",
        9: "its 'content' has parts that are not text",
        10: "its 'output' is not a text",
        11: "its 'output' is not Unicode text",
        12: "it has NUL bytes, as UTF-16 without a byte order mark has",
        13: "it is not JSON",
        14: "its 'output' is not a text",
        15: "its prompt is empty",
    }


def test_columns_that_are_null_or_have_parts_are_read(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    good = {"output": "y" * 16, "task": None, "followups": None, "meta": None}
    log = [good | {"prompt": [call, parts]}, good | {"prompt": [picture]}, {"prompt": "p", "output": None}]
    log += [good | {"prompt": "p", "task": "\ud800"}, good | {"prompt": "p", "task": 7}]
    found = read_traces(write_log(tmp_path / "a.jsonl", log), letters, Reading("", followups=True))
    assert ["".join(map(chr, trace.prompt)) for trace in found.traces] == ["assistant: \nuser: ab", "p"]
    assert found.skipped == [
        (2, "its 'content' has parts that are not text"),
        (3, "it has no 'output'"),
        (4, "its 'task' is not Unicode text"),
    ]


def test_of_many_bad_lines_the_first_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("foretoken.replay.read.MAX_NAMED", 2)
    (tmp_path / "a.jsonl").write_text("x\n" * 9)
    log = read_traces(tmp_path / "a.jsonl", letters, Reading(""))
    assert (log.unusable, [line for line, _ in log.skipped]) == (9, [1, 2])


def test_a_very_long_text_is_tokenized_as_far_as_it_is_kept(tmp_path):
    sizes = []

    def encode(texts):
        sizes.extend(map(len, texts))
        return letters(texts)

    log = [{"prompt": "a" * 999_999 + "\n" + "b" * 99_999, "output": "c\n" * 500_000}]
    (trace,) = read_traces(write_log(tmp_path / "a.jsonl", log), encode, Reading("")).traces
    assert max(sizes) <= 6000 * 64
    assert trace.prompt.tolist() == [ord("b")] * 6000 and trace.record.tolist() == letters(["c\n" * 200])[0]


def test_later_turns_cannot_take_all_memory(tmp_path):
    turn = {"input": [{"role": "user", "content": "u"}], "output": "o"}
    log = [{"prompt": "p" * 100_000, "output": "y" * 16, "followups": [turn] * 1000}]
    found = read_traces(write_log(tmp_path / "a.jsonl", log), letters, Reading("", followups=True))
    assert found.traces == [] and "come to more than" in found.skipped[0][1]


@pytest.mark.parametrize("limit", [None, 1, BATCH, BATCH + 1, 3 * BATCH])
def test_the_batches_do_not_show(tmp_path, limit):
    log = rows(2 * BATCH + 5)
    log[3]["output"] = "short"
    found = read_traces(write_log(tmp_path / "a.jsonl", log), letters, Reading("", limit))
    expected = [letters([row["prompt"]])[0] for row in log if len(row["output"]) >= 16][:limit]
    assert [trace.prompt.tolist() for trace in found.traces] == expected


def test_packed_logs_read_as_plain_ones(tmp_path):
    plain = write_log(tmp_path / "a.jsonl", rows(5))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(plain.read_bytes()))
    logs = [read_traces(tmp_path / f"a.jsonl{end}", letters, Reading("")) for end in ("", ".gz", ".xz")]
    assert len(logs[0].traces) == 5 and logs[0] == logs[1] == logs[2]


@pytest.mark.parametrize(
    ("name", "content"), [("a.gz", gzip.compress(b"x" * 999)[:-9]), ("a.gz", b"x"), ("a.xz", b"x")]
)
def test_damaged_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ForetokenError, match=rf"The file '.*{name}' could not be read: .*[^.]\.$"):
        read_traces(tmp_path / name, letters, Reading(""))


def test_the_tokenizers_own_padding_is_not_heeded(tmp_path):
    log = write_log(tmp_path / "a.jsonl", [{"prompt": "abc", "output": "d" * 17}])
    (trace,) = read_log(str(log), Reading(str(write_tokenizer(tmp_path / "tokenizer.json")))).traces
    assert trace.prompt.tolist() == [0, 1, 2] and trace.record.tolist() == [LETTERS.index("d")] * 17
