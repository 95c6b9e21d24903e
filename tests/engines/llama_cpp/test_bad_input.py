"""What cannot be run is refused with a sentence, and leaves nothing behind that the next answer would meet."""

from __future__ import annotations

import os
import signal
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from foretoken import ForetokenError, LanguageModel
from foretoken.engines.llama_cpp.context import Context
from foretoken.engines.llama_cpp.engine import LlamaCppEngine
from foretoken.engines.llama_cpp.library import library
from helpers.gguf_files import gguf_file

pytestmark = [
    pytest.mark.llama_cpp,
    pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs llama-cpp-python"),
]


def changed(path: Path, old: bytes, new: bytes) -> Path:
    """The file with some bytes of its metadata in the place of others."""
    content = gguf_file("q8_0").read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    return path


def field(name: bytes, value: bytes) -> bytes:
    """A text of the metadata as the file has it."""
    return name + b"\x08\x00\x00\x00" + len(value).to_bytes(8, "little") + value


@pytest.mark.parametrize(
    ("name", "value", "other", "said"),
    [
        (b"general.architecture", b"llama", b"lluma", "unknown model architecture: 'lluma'"),
        (b"tokenizer.ggml.model", b"gpt2", b"gpt9", "unknown tokenizer: 'gpt9'"),
        (b"tokenizer.ggml.model", b"gpt2", b"none", "has no tokenizer"),
    ],
)
def test_what_the_library_does_not_know_is_named(tmp_path, name, value, other, said):
    path = changed(tmp_path / "x.gguf", field(name, value), field(name, other))
    with pytest.raises(ForetokenError, match=said):
        LlamaCppEngine(path)


@pytest.mark.parametrize("share", [0.00001, 0.01, 0.5, 0.99])
def test_a_file_that_ends_too_early_is_refused(tmp_path, share):
    content = gguf_file("q8_0").read_bytes()
    path = tmp_path / "short.gguf"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ForetokenError, match=r"short\.gguf"):
        LlamaCppEngine(path)


def test_a_context_that_no_memory_holds_is_refused():
    with pytest.raises(ForetokenError, match=r"A context of 2000000000 tokens takes \d+ GiB"):
        LlamaCppEngine(gguf_file("q8_0"), context=2_000_000_000, threads=1)
    with pytest.raises(ForetokenError, match="context is 1: ask for at least 2"):
        LlamaCppEngine(gguf_file("q8_0"), context=1)


@pytest.mark.parametrize(
    ("asks", "said"),
    [
        ("llama_model_is_recurrent", "keeps a recurrent state"),
        ("llama_model_is_hybrid", "keeps a recurrent state"),
        ("llama_model_has_encoder", "is not a decoder-only language model"),
        ("llama_model_is_diffusion", "is not a decoder-only language model"),
    ],
)
def test_other_kinds_of_models_are_refused(monkeypatch, asks, said):
    monkeypatch.setattr(library(), asks, lambda model: True)
    with pytest.raises(ForetokenError, match=said):
        LlamaCppEngine(gguf_file("q8_0"))


def test_a_quantized_cache_needs_flash_attention():
    with pytest.raises(ForetokenError, match="needs flash attention: leave flash out"):
        LlamaCppEngine(gguf_file("q8_0"), cache_type=8, flash=False)
    lm = LanguageModel(LlamaCppEngine(gguf_file("q8_0"), context=200, threads=1, cache_type=8, exact=True))
    plain = lm.generate("x = [1, 2, 3, 1, 2", max_new_tokens=20, temperature=0, drafter="none")
    assert lm.generate("x = [1, 2, 3, 1, 2", max_new_tokens=20, temperature=0).text == plain.text


def test_two_engines_may_have_one_file():
    one, two = (LanguageModel(LlamaCppEngine(gguf_file("q8_0"), 200, 1, exact=True), background=None) for _ in range(2))
    how = {"max_new_tokens": 20, "temperature": 0.8, "seed": 2}
    first, second = one.stream("Once upon", **how), two.stream("def f(", **how)
    pairs = list(zip(first, second, strict=False))
    assert pairs
    alone = two.generate("Once upon", **how).text
    assert alone.startswith("".join(chunk.text for chunk, _ in pairs))
    del one
    assert two.generate("Once upon", **how).text == alone


def test_ctrl_c_within_a_forward_leaves_a_model_that_answers(monkeypatch):
    lm = LanguageModel(LlamaCppEngine(gguf_file("q8_0"), 300, 1, exact=True), background=None)
    how = {"max_new_tokens": 40, "temperature": 0.8, "seed": 2}
    text = lm.generate("Once upon", **how).text
    forward, count = Context.forward, iter(range(1000))

    def interrupted(self, rows):
        if next(count) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, rows)

    assert threading.current_thread() is threading.main_thread()
    monkeypatch.setattr(Context, "forward", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background turns off
    try:
        with pytest.raises(KeyboardInterrupt):
            lm.generate("Once upon", **how)
    finally:
        signal.signal(signal.SIGINT, before)
    assert lm.generate("Once upon", **how).text == text
