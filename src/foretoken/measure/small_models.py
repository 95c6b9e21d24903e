"""Small pretrained models of stories from their own formats: real text and real drafting on any machine.

llama2.c's legacy ``.bin`` (karpathy/llama2.c) and the ``.npz`` of bitllama2, a Llama of BitNet b1.58's ternary layers
(arXiv 2402.17764), both as transformers' Llama; and the pieces that llama2.c's tokenizers merge.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from foretoken.core.errors import ForetokenError

Floats = NDArray[np.float32]

BOS, EOS = 1, 2
NAMES = {
    "attn_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}


class PieceTokenizer:
    """Characters, merged pairwise as long as a pair is a piece, the one of the best score first.

    Args:
        pieces: The text of every id, ``<0x0A>`` for a byte; the first three are unknown, begin and end of a text.
        scores: One per piece.
    """

    def __init__(self, pieces: Sequence[str], scores: Sequence[float]) -> None:
        self.pieces, self.scores = list(pieces), list(scores)
        self._ids = {piece: i for i, piece in enumerate(self.pieces)}

    def get_vocab(self) -> dict[str, int]:
        """Every piece's id."""
        return dict(self._ids)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, after that of the begin; a text starts with a space of its own."""
        ids = [id for character in " " + text for id in self._character(character)]
        while True:
            merged = [self._ids.get(self.pieces[a] + self.pieces[b], -1) for a, b in pairwise(ids)]
            at = max((i for i, id in enumerate(merged) if id >= 0), key=lambda i: self.scores[merged[i]], default=None)
            if at is None:
                return [BOS, *ids]
            ids[at : at + 2] = [merged[at]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without the begin, the end, and the space that starts a text."""
        content = b"".join(self._bytes(self.pieces[id]) for id in ids if id not in (BOS, EOS))
        text = content.decode(errors="replace")
        return text.removeprefix(" ") if list(ids[:1]) == [BOS] else text

    def _character(self, character: str) -> list[int]:
        """The id of a character, or those of its bytes where it is no piece; 0 for what is not known at all."""
        if character in self._ids:
            return [self._ids[character]]
        return [self._ids.get(f"<0x{byte:02X}>", 0) for byte in character.encode()]

    @staticmethod
    def _bytes(piece: str) -> bytes:
        return bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.encode()


class BitLinear(nn.Module):
    """A linear layer that normalises its input itself and rounds it to 8 bits (BitNet b1.58, section 2).

    Args:
        shape: Of the weight, [outputs, inputs].
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[.., inputs] to [.., outputs]."""
        x = x / x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        scale = 127 / x.abs().amax(-1, keepdim=True)
        return nn.functional.linear((x * scale).round() / scale, self.weight)


def load_small(path: Path) -> tuple[LlamaForCausalLM, PieceTokenizer]:
    """A small model, float32, and its tokenizer.

    Where texts are compared, make a model of bit linear layers float64: to round to 8 bits makes much of a last bit,
    and that depends on how many rows a forward has.

    Args:
        path: Weights, ``*.bin`` or ``*.npz``, or a folder with one such file. The tokenizer, ``tok<vocab>.bin`` or
            ``tok<vocab>_pieces.json``, lies beside them or in a folder beside theirs.

    Raises:
        ForetokenError: If the weights or the tokenizer are missing or damaged.
    """
    weights = _only_weights(path) if path.is_dir() else path
    if not weights.is_file():
        raise ForetokenError(f"There are no weights {str(path)!r}: give a .bin of llama2.c or a .npz of bitllama2.")
    try:
        model = _load_npz(weights) if weights.suffix == ".npz" else _load_bin(weights)
        return model.eval(), _load_tokenizer(weights.parent, model.config.vocab_size)
    except Exception as error:  # a damaged file can raise anything
        raise ForetokenError(f"The weights {str(path)!r} could not be read: {error!r}.") from error


def _only_weights(folder: Path) -> Path:
    found = sorted(folder.glob("*.npz")) or [path for path in folder.glob("*.bin") if not path.name.startswith("tok")]
    if len(found) != 1:
        raise ForetokenError(f"The folder {str(folder)!r} has {len(found)} files of weights: name the one to load.")
    return found[0]


def _load_bin(path: Path) -> LlamaForCausalLM:
    content = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("7i", content[:28])
    values = np.frombuffer(content, dtype=np.float32, offset=28)
    kv_dim = dim // heads * kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (dim,),
        "wq": (dim, dim),
        "wk": (kv_dim, dim),
        "wv": (kv_dim, dim),
        "wo": (dim, dim),
        "ffn_norm": (dim,),
        "w1": (hidden, dim),
        "w2": (dim, hidden),
        "w3": (hidden, dim),
    }
    start = 0

    def take(shape: tuple[int, ...]) -> Floats:
        nonlocal start
        start += int(np.prod(shape))
        return values[start - int(np.prod(shape)) : start].reshape(shape)

    embeddings = take((vocab, dim))
    stacked = {name: take((layers, *shape)) for name, shape in shapes.items()}
    weights = [{name: stack[layer] for name, stack in stacked.items()} for layer in range(layers)]
    return _model(_config(dim, hidden, layers, heads, kv_heads, vocab, length), embeddings, weights, take((dim,)))


def _load_npz(path: Path) -> LlamaForCausalLM:
    shape = json.loads((path.parent / "config.json").read_text())
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
    config = _config(*(shape[name] for name in names))
    with np.load(path) as arrays:
        weights = [
            {
                name: arrays[f"layers.{layer}.{name}.u"] * arrays[f"layers.{layer}.{name}.s"]
                for name in NAMES
                if name.startswith("w")
            }
            for layer in range(config.num_hidden_layers)
        ]
        return _model(config, arrays["tok_embeddings"], weights, arrays["norm"])


def _config(dim: int, hidden: int, layers: int, heads: int, kv_heads: int, vocab: int, length: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def _model(
    config: LlamaConfig, embeddings: Floats, layers: Sequence[dict[str, Floats]], final_norm: Floats
) -> LlamaForCausalLM:
    """The model of these weights, with bit linear layers where a layer has no norm of its own."""
    model = LlamaForCausalLM(config)
    state = {"model.embed_tokens.weight": embeddings, "lm_head.weight": embeddings, "model.norm.weight": final_norm}
    for i, weights in enumerate(layers):
        state |= {f"model.layers.{i}.{NAMES[name]}.weight": _halves(name, weights[name], config) for name in weights}
    for i, weights in enumerate(layers):
        if "attn_norm" not in weights:
            for name, module in NAMES.items():
                path = f"model.layers.{i}.{module}"
                model.set_submodule(path, BitLinear(weights[name].shape) if name in weights else nn.Identity())
    model.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    return model


def _halves(name: str, weight: Floats, config: LlamaConfig) -> Floats:
    """A weight, its rows in transformers' order: llama2.c turns pairs of neighbours, transformers pairs of halves."""
    if name not in ("wq", "wk"):
        return weight
    head_dim = config.hidden_size // config.num_attention_heads
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _load_tokenizer(folder: Path, vocab: int) -> PieceTokenizer:
    for place in [folder, *sorted(folder.parent.iterdir())]:
        if (place / f"tok{vocab}.bin").is_file():
            return _read_scored_pieces((place / f"tok{vocab}.bin").read_bytes())
        if (place / f"tok{vocab}_pieces.json").is_file():
            pieces = json.loads((place / f"tok{vocab}_pieces.json").read_text())
            return PieceTokenizer(pieces, [0.0] * len(pieces))
    raise ForetokenError(f"There is no tokenizer of {vocab} pieces beside {str(folder)!r}: put tok{vocab}.bin there.")


def _read_scored_pieces(content: bytes) -> PieceTokenizer:
    """llama2.c's ``tokenizer.bin``: the longest piece's length, then of each piece its score, length and bytes."""
    pieces, scores = [], []
    start = 4
    while start < len(content):
        score, length = struct.unpack_from("fi", content, start)
        start += 8 + length
        pieces.append(content[start - length : start].decode())
        scores.append(score)
    return PieceTokenizer(pieces, scores)
