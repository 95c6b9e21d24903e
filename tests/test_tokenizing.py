"""A tokenizer from wherever people have one."""

from __future__ import annotations

import gzip

import pytest

from foretoken.core.errors import ForetokenError
from foretoken.engines.transformers.loading import TINY
from foretoken.engines.transformers.loading import load_tokenizer as load_from_transformers
from foretoken.memory.fingerprint import fingerprint
from foretoken.tokenizing import batch_encoder, load_tokenizer

TEXT = "def area(width, height):\n    return"


def test_a_file_a_packed_file_a_folder_and_a_name_are_the_same(tmp_path):
    data = (TINY / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(data)
    (tmp_path / "tokenizer.json.gz").write_bytes(gzip.compress(data))
    places = [tmp_path / "tokenizer.json", tmp_path / "tokenizer.json.gz", tmp_path, TINY, "tiny"]
    tokenizers = [load_tokenizer(str(place)) for place in places]
    assert len({fingerprint(tokenizer) for tokenizer in tokenizers}) == 1
    assert len({tuple(tokenizer.encode(TEXT).ids) for tokenizer in tokenizers}) == 1
    assert fingerprint(tokenizers[0]) == fingerprint(load_from_transformers("tiny"))


def test_a_model_folder_has_the_tokens_that_its_settings_add(tmp_path):
    (tmp_path / "config.json").write_bytes((TINY / "config.json").read_bytes())
    tokenizer = load_from_transformers("tiny")
    tokenizer.save_pretrained(tmp_path)
    plain = (tmp_path / "tokenizer.json").read_bytes()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint(load_tokenizer(str(tmp_path))) == fingerprint(load_from_transformers(str(tmp_path)))
    (tmp_path / "tokenizer.json").write_bytes(plain)
    assert fingerprint(load_tokenizer(str(tmp_path))) == fingerprint(load_from_transformers(str(tmp_path)))


def test_texts_are_encoded_as_they_are():
    tokenizer = load_tokenizer("tiny")
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    ids = batch_encoder(tokenizer)([TEXT, ""])
    assert tokenizer.decode(ids[0], skip_special_tokens=False) == TEXT and ids[1] == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", b"{}", "it is not a tokenizer.json"),
        ("tokenizer.json", b"\xff", "it is not a tokenizer.json"),
        ("tokenizer.json.gz", b"{}", r"it is no \.gz archive"),
        ("tokenizer.json.gz", gzip.compress(b"{}" * 99)[:20], "it is damaged"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ForetokenError, match=words):
        load_tokenizer(str(tmp_path / name))


def test_a_folder_without_one_and_no_folder_are_refused(tmp_path):
    with pytest.raises(ForetokenError, match=r"it has no tokenizer\.json"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ForetokenError):
        load_tokenizer(str(tmp_path / "none"))
