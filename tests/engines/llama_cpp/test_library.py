"""What is no GGUF file is refused before llama.cpp sees it, and a missing library says what to do."""

from __future__ import annotations

import sys

import pytest

import foretoken
from foretoken import ForetokenError
from foretoken.engines.llama_cpp.library import check_is_gguf, library
from foretoken.engines.llama_cpp.tokens import render


def test_what_is_no_gguf_file_is_refused(tmp_path):
    for content, sentence in (
        (b"", "is no GGUF file"),
        (b"GGU", "is no GGUF file"),
        (b"PK\x03\x04", "is no GGUF file"),
    ):
        path = tmp_path / "x.gguf"
        path.write_bytes(content)
        with pytest.raises(ForetokenError, match=sentence):
            check_is_gguf(path)
    for path in (tmp_path / "missing.gguf", tmp_path):
        with pytest.raises(ForetokenError, match=r"cannot be read: (No such file|Is a directory)"):
            check_is_gguf(path)


def test_without_llama_cpp_python_the_command_that_installs_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_cpp", None)
    library.cache_clear()
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ForetokenError, match=r"needs llama_cpp\S*: pip install 'foretoken\[llama-cpp\]'"):
        foretoken.load(str(path))


TEMPLATE = """{% for m in messages %}
{{ bos_token }}<{{ m.role }}>{{ m.content }}
{% endfor %}
{% if add_generation_prompt %}<assistant>{% endif %}"""


def test_a_chat_template_is_rendered_in_a_sandbox():
    turns = [{"role": "user", "content": "hi"}]
    assert render(TEMPLATE, turns, {"bos_token": "^"}) == "^<user>hi\n<assistant>"
    for template, sentence in (
        ("{{ raise_exception('no system turn') }}", "no system turn"),
        ("{{ messages.append(1) }}", "does not take these messages"),
        ("{{ ().__class__.__base__ }}", "does not take these messages"),
        ("{% for %}", "does not take these messages"),
    ):
        with pytest.raises(ForetokenError, match=sentence):
            render(template, turns, {})
