"""Small models from their own formats, beside a second implementation; the pretrained ones with --models FOLDER."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foretoken import ForetokenError
from foretoken.measure.small_models import PieceTokenizer, load_small

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, LENGTH = 16, 24, 2, 4, 2, 11, 32
KV_DIM = DIM // HEADS * KV_HEADS
SHAPES = {
    "attn_norm": (DIM,),
    "wq": (DIM, DIM),
    "wk": (KV_DIM, DIM),
    "wv": (KV_DIM, DIM),
    "wo": (DIM, DIM),
    "ffn_norm": (DIM,),
    "w1": (HIDDEN, DIM),
    "w2": (DIM, HIDDEN),
    "w3": (HIDDEN, DIM),
}
PIECES = ["<unk>", "<s>", "</s>", "<0x0A>", " ", "a", "b", "ab", "bb", " a", "<0xC3>"]
SCORES = [0.0] * 7 + [-1.0, -2.0, -3.0, 0.0]


def rms(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def rotate(x):
    """[positions, heads, size]: neighbours turned by an angle that grows with the position."""
    angle = np.arange(len(x))[:, None, None] * 10000.0 ** (-np.arange(0, x.shape[-1], 2) / x.shape[-1])
    even, odd = x[..., ::2], x[..., 1::2]
    turned = np.stack([even * np.cos(angle) - odd * np.sin(angle), even * np.sin(angle) + odd * np.cos(angle)], -1)
    return turned.reshape(x.shape)


def logits_by_hand(embeddings, layers, norm, ids, linear=lambda x, w: x @ w.T):
    """llama2.c's forward over a whole sequence, in float64: [positions, vocab]."""
    x = embeddings[ids].astype(np.float64)
    size, group = DIM // HEADS, HEADS // KV_HEADS
    for w in layers:
        h = rms(x) * w["attn_norm"] if "attn_norm" in w else x
        q, k, v = (linear(h, w[name]).reshape(len(ids), -1, size) for name in ("wq", "wk", "wv"))
        q, k, v = rotate(q), rotate(k).repeat(group, 1), v.repeat(group, 1)
        scores = np.einsum("qhs,khs->hqk", q, k) / np.sqrt(size) + np.triu(np.full((len(ids),) * 2, -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khs->qhs", weights / weights.sum(-1, keepdims=True), v).reshape(len(ids), DIM)
        x = x + linear(mixed, w["wo"])
        h = rms(x) * w["ffn_norm"] if "ffn_norm" in w else x
        gate = linear(h, w["w1"])
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, w["w3"]), w["w2"])
    return rms(x) * norm @ embeddings.T


def bit_linear(x, w):
    x = x / np.linalg.norm(x, axis=-1, keepdims=True) / np.sqrt(x.shape[-1])
    scale = 127 / np.abs(x).max(-1, keepdims=True)
    return np.round(x * scale) / scale @ w.T


def write_tokenizer(folder: Path) -> None:
    pieces = [struct.pack("fi", score, len(p)) + p.encode() for p, score in zip(PIECES, SCORES, strict=True)]
    (folder / f"tok{VOCAB}.bin").write_bytes(struct.pack("i", 6) + b"".join(pieces))


def write_bin(folder: Path, random: np.random.Generator) -> Mapping:
    embeddings = random.normal(size=(VOCAB, DIM)).astype(np.float32)
    stacks = {name: random.normal(size=(LAYERS, *shape)).astype(np.float32) / 2 for name, shape in SHAPES.items()}
    norm, rope = random.normal(size=DIM).astype(np.float32), np.zeros(LENGTH * DIM // HEADS, np.float32)
    header = struct.pack("7i", DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, LENGTH)
    arrays: list[np.ndarray] = [embeddings, *stacks.values(), norm, rope]
    (folder / "model.bin").write_bytes(header + b"".join(array.tobytes() for array in arrays))
    write_tokenizer(folder)
    layers = [{name: stack[i] for name, stack in stacks.items()} for i in range(LAYERS)]
    return {"embeddings": embeddings, "layers": layers, "norm": norm}


def write_npz(folder: Path, random: np.random.Generator) -> Mapping:
    embeddings, norm = random.normal(size=(VOCAB, DIM)).astype(np.float32), random.normal(size=DIM).astype(np.float32)
    arrays: dict[str, Any] = {"tok_embeddings": embeddings, "norm": norm}
    layers: list[dict[str, Any]] = [{name: None for name in SHAPES if name.startswith("w")} for _ in range(LAYERS)]
    for i, layer in enumerate(layers):
        for name in layer:
            signs, scale = random.integers(-1, 2, SHAPES[name]).astype(np.int8), np.float32(random.uniform(5, 9))
            arrays |= {f"layers.{i}.{name}.u": signs, f"layers.{i}.{name}.s": scale}
            layer[name] = signs * scale
    np.savez(folder / "model.npz", **arrays)
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
    shape = (DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, LENGTH)
    (folder / "config.json").write_text(json.dumps(dict(zip(names, shape, strict=True))))
    write_tokenizer(folder)
    return {"embeddings": embeddings, "layers": layers, "norm": norm, "linear": bit_linear}


@pytest.mark.parametrize("write", [write_bin, write_npz])
@torch.inference_mode()
def test_a_loaded_model_scores_as_its_format_says(tmp_path, write):
    weights = write(tmp_path, np.random.default_rng(0))
    model, tokenizer = load_small(tmp_path)
    ids = [1, 4, 5, 9, 6, 3, 8, 8, 0, 2, 10, 7]
    expected = logits_by_hand(**weights, ids=ids)
    ours = model(torch.tensor([ids])).logits[0].numpy()
    # Where a number lies between two of the 8-bit steps, float32 may round it to the other one.
    assert np.abs(ours - expected).max() < (1e-4 if write is write_bin else 0.05) * np.abs(expected).max()
    assert (ours.argmax(-1) == expected.argmax(-1)).all()
    assert tokenizer.encode("ab") == [1, 4, 7]


def test_an_unpermuted_model_is_caught(tmp_path, monkeypatch):
    """The test above must be able to fail: rows in the file's order turn other pairs."""
    weights = write_bin(tmp_path, np.random.default_rng(0))
    monkeypatch.setattr("foretoken.measure.small_models._halves", lambda name, weight, config: weight)
    with torch.inference_mode():
        ours = load_small(tmp_path)[0](torch.tensor([[1, 4, 5, 9, 6]])).logits[0].numpy()
    expected = logits_by_hand(**weights, ids=[1, 4, 5, 9, 6])
    assert np.abs(ours - expected).max() > 0.1


def test_pieces_merge_by_score_and_come_back():
    tokenizer = PieceTokenizer(PIECES, SCORES)
    assert tokenizer.encode("abb\n") == [1, 4, 7, 6, 3], "ab before bb, and a newline is a byte"
    assert tokenizer.encode("bb") == [1, 4, 8]
    for text in ("", "abba\nab", " a", "b a"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("Ã\u00ff")[-4:] == [10, 0, 10, 0], "a byte that is no piece is unknown"
    assert tokenizer.decode([5, 4, 5]) == "a a"
    assert len(tokenizer.get_vocab()) == VOCAB


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ForetokenError, match="0 files of weights"):
        load_small(tmp_path)
    with pytest.raises(ForetokenError, match="no weights"):
        load_small(tmp_path / "model.bin")
    folder = tmp_path / "models" / "one"
    folder.mkdir(parents=True)
    write_bin(folder, np.random.default_rng(0))
    assert load_small(folder)
    (folder / f"tok{VOCAB}.bin").unlink()
    with pytest.raises(ForetokenError, match="no tokenizer of 11 pieces"):
        load_small(folder)


@pytest.mark.parametrize("name", ["stories260K", "bitllama2_1M", "bitllama2_3M", "babyllama_char/babyllama_tok361.bin"])
def test_the_pretrained_models_tell_a_story(pytestconfig, name):
    models = pytestconfig.getoption("--models")
    if models is None:
        pytest.skip("no pretrained models: give their folder with --models")
    model, tokenizer = load_small(models / name)
    ids = torch.tensor([tokenizer.encode("Once upon a time")])
    with torch.inference_mode():
        told = model.generate(ids, max_new_tokens=60, do_sample=False, pad_token_id=0)[0].tolist()
    assert tokenizer.decode(told).startswith("Once upon a time, there was a little girl named Lily. She loved to play")


@pytest.mark.parametrize("content", ["[]", "5", "{", '{"dim": "x"}'])
def test_a_damaged_config_is_a_sentence(tmp_path, content):
    np.savez(tmp_path / "weights.npz", norm=np.zeros(2))
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ForetokenError, match="could not be read"):
        load_small(tmp_path)
