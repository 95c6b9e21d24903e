"""Small models converted from their own formats, beside a second implementation; real ones with --models FOLDER."""

from __future__ import annotations

import json
import runpy
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foretoken
from foretoken.engines.transformers.loading import load_model, load_tokenizer

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "convert_small_model.py"))
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
PIECE_TOKENIZER = SCRIPT["tokenizer_of"](PIECES, SCORES)


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
    """A layer of BitNet, but for the rounding of its input, which the conversion leaves out."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True) / np.sqrt(x.shape[-1]) @ w.T


def write_tokenizer(folder: Path) -> None:
    pieces = [struct.pack("fi", score, len(p)) + p.encode() for p, score in zip(PIECES, SCORES, strict=True)]
    (folder / "tok.bin").write_bytes(struct.pack("i", 6) + b"".join(pieces))


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


def converted(folder: Path, weights: str):
    """The model and the tokenizer as the package loads them."""
    SCRIPT["convert"](folder / weights, folder / "tok.bin", folder / "new")
    return load_model(str(folder / "new"), "float32", "cpu"), load_tokenizer(str(folder / "new"))


@pytest.mark.parametrize(("write", "weights"), [(write_bin, "model.bin"), (write_npz, "model.npz")])
@torch.inference_mode()
def test_a_converted_model_scores_as_its_format_says(tmp_path, write, weights):
    read = write(tmp_path, np.random.default_rng(0))
    model, tokenizer = converted(tmp_path, weights)
    ids = [1, 4, 5, 9, 6, 3, 8, 8, 0, 2, 10, 7]
    expected = logits_by_hand(**read, ids=ids)
    ours = model(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()
    assert (ours.argmax(-1) == expected.argmax(-1)).all()
    assert tokenizer("ab")["input_ids"] == [1, 4, 7]


def test_an_unpermuted_model_is_caught(tmp_path, monkeypatch):
    """The test above must be able to fail: rows in the file's order turn other pairs."""
    weights = write_bin(tmp_path, np.random.default_rng(0))
    monkeypatch.setitem(SCRIPT["fill"].__globals__, "in_halves", lambda name, weight, config: weight)
    with torch.inference_mode():
        ours = converted(tmp_path, "model.bin")[0](torch.tensor([[1, 4, 5, 9, 6]])).logits[0].numpy()
    expected = logits_by_hand(**weights, ids=[1, 4, 5, 9, 6])
    assert np.abs(ours - expected).max() > 0.1


def pieces_by_hand(text: str) -> list[int]:
    """llama2.c's tokenizer: characters or their bytes, merged pairwise, the best score first."""
    ids = []
    for character in " " + text:
        known = [f"<0x{byte:02X}>" for byte in character.encode()]
        ids += [PIECES.index(piece) for piece in ([character] if character in PIECES else known)]
    while True:
        pairs = [PIECES[a] + PIECES[b] for a, b in pairwise(ids)]
        found = [(-SCORES[PIECES.index(pair)], at) for at, pair in enumerate(pairs) if pair in PIECES]
        if not found:
            return [1, *ids]
        at = min(found)[1]
        ids[at : at + 2] = [PIECES.index(pairs[at])]


@given(st.text("ab \n", min_size=1))
def test_pieces_merge_by_score_and_come_back(text):
    ids = PIECE_TOKENIZER(text)["input_ids"]
    assert ids == pieces_by_hand(text)
    assert PIECE_TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_a_character_whose_bytes_are_no_pieces_is_unknown():
    assert PIECE_TOKENIZER("a\u00ff")["input_ids"][-1] == 0


@pytest.mark.parametrize(
    ("weights", "tokenizer"),
    [
        ("stories260K/stories260K.bin", "stories260K/tok512.bin"),
        ("bitllama2_1M/bitllama2_1M.npz", "stories260K/tok512.bin"),
        ("bitllama2_3M/bitllama2_3M.npz", "stories260K/tok512.bin"),
        ("babyllama_char/babyllama_tok361.bin", "babyllama_char/tok361_pieces.json"),
    ],
)
def test_the_pretrained_models_tell_a_story(pytestconfig, tmp_path, weights, tokenizer):
    models = pytestconfig.getoption("--models")
    if models is None:
        pytest.skip("no pretrained models: give their folder with --models")
    SCRIPT["convert"](models / weights, models / tokenizer, tmp_path)
    lm = foretoken.load(str(tmp_path), dtype="float32", background=None)
    told = lm.generate("Once upon a time", max_new_tokens=60, temperature=0).text
    assert told.startswith(", there was a little girl named Lily. She loved to play")
