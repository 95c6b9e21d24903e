"""Convert a small pretrained model of stories to a folder that transformers loads.

    python scripts/convert_small_model.py stories260K.bin tok512.bin converted/stories260K
    python scripts/convert_small_model.py bitllama2_3M/bitllama2_3M.npz tok512.bin converted/bitllama2_3M
    foretoken bench methods --model converted/bitllama2_3M --draft-model converted/stories260K

Two formats of weights are read: llama2.c's legacy ``.bin`` (karpathy/llama2.c), which becomes a Llama, and the ``.npz``
of bitllama2 with its ``config.json`` beside it, which becomes a BitNet (BitNet b1.58, arXiv 2402.17764). Of the latter
one thing is left out: the layers' inputs are not rounded to 8 bits. Transformers rounds them only in layers that it
compiles with torch.compile, and rounding makes much of a last bit, so that texts could be compared in float64 alone.
The loss on stories stays the same within 0.2 %, and 96 of 100 tokens do.

The tokenizer is llama2.c's ``tokenizer.bin``, or a ``.json`` list of single characters by id.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import (
    BitNetConfig,
    BitNetForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

Floats = NDArray[np.float32]

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"  # the first three pieces
SHAPE = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
LINEAR = {
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}
NORMS = ("input_layernorm", "post_attention_layernorm", "self_attn.attn_sub_norm", "mlp.ffn_sub_norm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, help="a .bin of llama2.c or a .npz of bitllama2")
    parser.add_argument("tokenizer", type=Path, help="tokenizer.bin of llama2.c, or a .json list of characters")
    parser.add_argument("folder", type=Path, help="where the model is written")
    arguments = parser.parse_args()
    convert(arguments.weights, arguments.tokenizer, arguments.folder)


def convert(weights: Path, tokenizer: Path, folder: Path) -> None:
    """Write config.json, model.safetensors and tokenizer.json to ``folder``."""
    model = read_bitllama(weights) if weights.suffix == ".npz" else read_llama(weights)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    read_tokenizer(tokenizer).save_pretrained(folder)


def read_llama(path: Path) -> LlamaForCausalLM:
    """The model of a legacy ``.bin``: seven whole numbers, then the weights, those of all layers together."""
    content = path.read_bytes()
    shape = dict(zip(SHAPE, struct.unpack("7i", content[:28]), strict=True))
    dim, hidden, layers = shape["dim"], shape["hidden_dim"], shape["n_layers"]
    values = arrays_of(np.frombuffer(content, dtype=np.float32, offset=28))
    kv_dim = dim // shape["n_heads"] * shape["n_kv_heads"]
    arrays = {"model.embed_tokens": values((shape["vocab_size"], dim))}
    stacks = {
        "input_layernorm": values((layers, dim)),
        "wq": values((layers, dim, dim)),
        "wk": values((layers, kv_dim, dim)),
        "wv": values((layers, kv_dim, dim)),
        "wo": values((layers, dim, dim)),
        "post_attention_layernorm": values((layers, dim)),
        "w1": values((layers, hidden, dim)),
        "w2": values((layers, dim, hidden)),
        "w3": values((layers, hidden, dim)),
    }
    arrays["model.norm"] = values((dim,))
    for i in range(layers):
        arrays |= {f"model.layers.{i}.{LINEAR.get(name, name)}": stack[i] for name, stack in stacks.items()}
    model = LlamaForCausalLM(LlamaConfig(**options_of(shape), rms_norm_eps=1e-5))
    fill(model, arrays)
    return model


def arrays_of(values: Floats) -> Callable[[tuple[int, ...]], Floats]:
    """A function that takes the next numbers, in a shape."""
    start = 0

    def take(shape: tuple[int, ...]) -> Floats:
        nonlocal start
        start += int(np.prod(shape))
        return values[start - int(np.prod(shape)) : start].reshape(shape)

    return take


def read_bitllama(path: Path) -> BitNetForCausalLM:
    """The model of a ``.npz``: ternary weights and their scales, and layers that normalise their input themselves.

    They divide it by its norm and the root of its size n, which is transformers' RMS norm with all weights 1 / n. There
    is no epsilon under the root, so transformers' is made negligible.
    """
    shape = json.loads((path.parent / "config.json").read_text())
    with np.load(path) as found:
        arrays = {"model.embed_tokens": found["tok_embeddings"], "model.norm": found["norm"]}
        for i in range(shape["n_layers"]):
            for name, module in LINEAR.items():
                arrays[f"model.layers.{i}.{module}"] = found[f"layers.{i}.{name}.u"] * found[f"layers.{i}.{name}.s"]
            for norm in NORMS:
                size = shape["hidden_dim" if norm.startswith("mlp") else "dim"]
                arrays[f"model.layers.{i}.{norm}"] = np.full(size, 1 / size, np.float32)
    model = BitNetForCausalLM(BitNetConfig(**options_of(shape), hidden_act="silu", rms_norm_eps=1e-9))
    fill(model, arrays)
    return model


def options_of(shape: Mapping[str, int]) -> dict[str, Any]:
    """Options of a config of transformers for the shape that llama2.c's formats give."""
    return {
        "vocab_size": shape["vocab_size"],
        "hidden_size": shape["dim"],
        "intermediate_size": shape["hidden_dim"],
        "num_hidden_layers": shape["n_layers"],
        "num_attention_heads": shape["n_heads"],
        "num_key_value_heads": shape["n_kv_heads"],
        "max_position_embeddings": shape["max_seq_len"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def fill(model: PreTrainedModel, arrays: Mapping[str, Floats]) -> None:
    """Give a model its weights, by module."""
    state = {f"{name}.weight": torch.tensor(in_halves(name, array, model.config)) for name, array in arrays.items()}
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})


def in_halves(name: str, weight: Floats, config: PreTrainedConfig) -> Floats:
    """A weight, its rows in transformers' order: llama2.c turns pairs of neighbours, transformers pairs of halves."""
    if not name.endswith(("q_proj", "k_proj")):
        return weight
    head_dim = config.hidden_size // config.num_attention_heads
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a list of pieces, with or without scores."""
    if path.suffix == ".json":
        pieces: list[str] = json.loads(path.read_text())
        return tokenizer_of(pieces, [0.0] * len(pieces))
    return tokenizer_of(*scored_pieces(path.read_bytes()))


def tokenizer_of(pieces: Sequence[str], scores: Sequence[float]) -> PreTrainedTokenizerFast:
    """A tokenizer that merges the pair of pieces whose union scores best, after a space of its own at the start.

    A character that is no piece becomes its bytes, or unknown if they are no pieces.
    """
    vocab = {piece: i for i, piece in enumerate([UNKNOWN, BEGIN, END, *pieces[3:]])}
    tokenizer = Tokenizer(models.BPE(vocab, merges_of(vocab, scores), unk_token=UNKNOWN, byte_fallback=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(f"{BEGIN} $A", special_tokens=[(BEGIN, vocab[BEGIN])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, bos_token=BEGIN, eos_token=END)


def merges_of(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, the one of the best score first."""
    ordered = sorted(vocab, key=lambda piece: -scores[vocab[piece]])
    splits = ((piece[:i], piece[i:]) for piece in ordered for i in range(1, len(piece)))
    return [(left, right) for left, right in splits if left in vocab and right in vocab]


def scored_pieces(content: bytes) -> tuple[list[str], list[float]]:
    """llama2.c's ``tokenizer.bin``: the longest piece's length, then of each piece its score, length and bytes."""
    pieces, scores = [], []
    start = 4
    while start < len(content):
        score, length = struct.unpack_from("fi", content, start)
        start += 8 + length
        pieces.append(content[start - length : start].decode())
        scores.append(score)
    return pieces, scores


if __name__ == "__main__":
    main()
