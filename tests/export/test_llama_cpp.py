"""llama.cpp reads what was written: the same tokens, and the model's own logits."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foretoken.core.errors import ModelError
from foretoken.engines.transformers.loading import load_model, load_tokenizer
from foretoken.export import vocabulary
from foretoken.export.gguf import export_gguf
from foretoken.export.same_tokens import llama_cpp_tokenizer, texts
from helpers.llama_folders import llama_folder

pytestmark = [
    pytest.mark.llama_cpp,
    pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs llama-cpp-python"),
]


@pytest.mark.parametrize("pre", vocabulary.PRE_TOKENIZERS)
def test_a_hundred_texts_have_the_same_tokens(pre, tmp_path, capfd):
    import llama_cpp

    name = str(llama_folder(tmp_path / "model", pre))
    capfd.readouterr()
    assert export_gguf(name, tmp_path / "x.gguf", "q8_0") == 100
    assert "BOS" not in capfd.readouterr().err  # llama.cpp warns of a text that begins with it
    tokenizer = load_tokenizer(name)
    with llama_cpp_tokenizer(llama_cpp, tmp_path / "x.gguf") as encode:
        for text in texts(["<tool>", "<|user|>", "<s>"]):
            assert encode(text) == tokenizer(text).input_ids, text
            assert (encode(text)[:1] == [0]) == (pre == "llama-bpe") or text.startswith("<s>")


def test_the_bundled_model_has_the_same_tokens(tmp_path):
    assert export_gguf("tiny", tmp_path / "x.gguf", "q4_0") == 100


def test_a_pre_tokenizer_under_a_wrong_name_is_found_and_nothing_is_written(tmp_path, monkeypatch):
    right = vocabulary.PRE_TOKENIZERS
    monkeypatch.setattr(vocabulary, "PRE_TOKENIZERS", {"smollm": right["gpt-2"]})
    name = str(llama_folder(tmp_path / "model", "gpt-2"))
    (tmp_path / "x.gguf").write_text("what was there")
    with pytest.raises(ModelError, match="other tokens of "):
        export_gguf(name, tmp_path / "x.gguf", "f32")
    assert (tmp_path / "x.gguf").read_text() == "what was there"


def test_a_tokenizer_that_llama_cpp_does_not_take_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "PRE_TOKENIZERS", {"no such name": vocabulary.PRE_TOKENIZERS["gpt-2"]})
    with pytest.raises(ModelError, match="does not take the tokenizer"):
        export_gguf(str(llama_folder(tmp_path / "model")), tmp_path / "x.gguf", "f32")


def logits(path: Path, tokens: list[int]) -> np.ndarray[Any, Any]:
    """llama.cpp's, of every token, with keys and values in float32."""
    from llama_cpp import Llama

    precise: dict[str, Any] = {"type_k": 0, "type_v": 0}
    threads: dict[str, Any] = {"n_threads": 1, "n_threads_batch": 1}
    llama = Llama(str(path), n_ctx=256, logits_all=True, verbose=False, **precise, **threads)
    llama.eval(tokens)
    found = np.array(llama.scores[: len(tokens)])
    llama.close()
    return found


def transformers_logits(name: str) -> tuple[list[int], np.ndarray[Any, Any]]:
    """The tokens of a short text, and the logits of each."""
    text = "def area(width, height):\n    return width * height\n\n\nprint(area(3, 14))"
    tokens = load_tokenizer(name)(text).input_ids
    with torch.no_grad():
        return tokens, load_model(name, "float32")(torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize("which", ["tiny", "random"])
def test_the_logits_are_those_of_transformers(which, tmp_path):
    name = "tiny" if which == "tiny" else str(llama_folder(tmp_path / "model", "llama-bpe"))
    export_gguf(name, tmp_path / "x.gguf", "f32")
    tokens, wanted = transformers_logits(name)
    found = logits(tmp_path / "x.gguf", tokens)
    assert np.abs(found - wanted).max() < 1e-3
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()


def test_rows_in_the_models_own_order_give_other_logits(tmp_path, monkeypatch):
    """The control of the test above."""
    monkeypatch.setattr("foretoken.export.gguf.neighbours", lambda weight, num_heads: weight)
    export_gguf("tiny", tmp_path / "x.gguf", "f32")
    tokens, wanted = transformers_logits("tiny")
    assert np.abs(logits(tmp_path / "x.gguf", tokens) - wanted).max() > 0.1


def test_what_llama_cpp_knows_of_special_tokens(tmp_path):
    import llama_cpp
    from llama_cpp import Llama

    name = str(llama_folder(tmp_path / "model", "llama-bpe"))
    export_gguf(name, tmp_path / "x.gguf", "f16")
    llama = Llama(str(tmp_path / "x.gguf"), vocab_only=True, verbose=False)
    words = llama_cpp.llama_model_get_vocab(llama.model)
    assert [i for i in range(913) if llama_cpp.llama_vocab_is_eog(words, i)] == [1, 2]
    assert [i for i in range(913) if llama_cpp.llama_vocab_is_control(words, i)] == [0, 1, 2, 3]
    assert llama_cpp.llama_vocab_bos(words) == 0 and llama_cpp.llama_vocab_get_add_bos(words)
    assert llama.metadata["tokenizer.chat_template"] == load_tokenizer(name).chat_template
    assert json.loads(llama.metadata["llama.vocab_size"]) == 913
    llama.close()
