"""Llama models as GGUF files, which llama.cpp runs.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Names of tensors and keys are those of the
architecture "llama" in llama.cpp.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import IO, Any, cast

import gguf
import numpy as np
from gguf.gguf_writer import WriterState
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from foretoken.core.errors import ModelError, RequestError
from foretoken.engines.transformers.loading import load_config, load_model, load_tokenizer
from foretoken.export.same_tokens import check_same_tokens
from foretoken.export.vocabulary import END_JOBS, read_vocabulary
from foretoken.files import check_apart, check_writable, is_special, writing

# What the matrices are kept as; vectors, which are small, stay in float32.
TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
ARCHITECTURE = "llama"
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
NAMES_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def export_gguf(name: str, path: Path, weights: str) -> int:
    """Write a model and its tokenizer as one GGUF file, or nothing.

    The tokenizer is compared with llama.cpp's reading of it before anything is written, where llama-cpp-python is
    installed.

    Args:
        name: Folder of a Llama model, name on the hub, or "tiny".
        path: Where the file will stand; folders that are missing are made.
        weights: What the matrices are kept as, one of ``TYPES``.

    Returns:
        How many texts made the same tokens in llama.cpp; 0 without llama-cpp-python, and a warning is logged.

    Raises:
        ForetokenError: If llama.cpp would not compute what the model computes, or the file cannot be written.
    """
    if weights not in TYPES:
        raise RequestError(f"There is no type {weights!r} here: choose one of {', '.join(TYPES)}.")
    if is_special(path):
        raise RequestError(f"A GGUF file is not written in one go, and {str(path)!r} is no file: name one.")
    folder = Path(os.path.expanduser(name))
    check_apart([path], [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else [])
    check_writable(path, folders=True)
    config = load_config(name)
    _check_config(name, config)
    _check_rows(config, weights)
    tokenizer = load_tokenizer(name)
    vocabulary = read_vocabulary(tokenizer, config.vocab_size)
    model = load_model(name, "float32", "cpu")
    ends = _ends(name, model)
    if vocabulary.add_eos and vocabulary.special["eos"] not in ends:
        raise ModelError(f"The tokenizer of {name!r} ends every text with a token that does not end its answers.")
    tensors = [_tensor(config, *named, weights) for named in model.named_parameters()]  # tied weights come once

    def write(file: IO[bytes], tensors: Sequence[_Tensor] = ()) -> None:
        writer = _Writer(file)
        writer.add_name(os.path.basename(os.path.abspath(name)))
        writer.add_file_type(TYPES[weights][1])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, config)
        vocabulary.add_to(writer, ends)
        writer.write_all(tensors)

    num_texts = check_same_tokens(tokenizer, vocabulary.added(), write)
    with writing(path, folders=True) as file:
        write(file, tensors)
    return num_texts


def _check_config(name: str, config: Any) -> None:
    """Refuse what llama.cpp's "llama" does not compute, or what has no place in a file.

    Raises:
        ForetokenError: If there is any.
    """
    if config.model_type != ARCHITECTURE:
        raise ModelError(
            f"The model {name!r} is of the architecture {config.model_type!r}, and GGUF files are written of "
            f"{ARCHITECTURE!r} alone here: convert it with llama.cpp's own convert_hf_to_gguf.py."
        )
    scaling = config.rope_parameters["rope_type"]
    unfit = {
        "its attention has biases": config.attention_bias,
        "its MLP has biases": config.mlp_bias,
        f"its activation is {config.hidden_act!r}, not 'silu'": config.hidden_act != "silu",
        f"its positions are scaled ({scaling})": scaling != "default",
        "its weights are quantized already": getattr(config, "quantization_config", None) is not None,
    }
    for reason, applies in unfit.items():
        if applies:
            raise ModelError(f"The model {name!r} cannot be written to a GGUF file: {reason}.")


def _check_rows(config: Any, weights: str) -> None:
    """Refuse matrices whose rows are no whole number of blocks.

    Raises:
        ForetokenError: If there are any.
    """
    block, _ = gguf.GGML_QUANT_SIZES[TYPES[weights][0]]
    for columns in (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim):
        if columns % block:
            raise RequestError(f"Type {weights} takes {block} weights together, and rows have {columns}: choose f16.")


def _ends(name: str, model: PreTrainedModel) -> list[int]:
    """The tokens at which the model's answers end.

    Raises:
        ForetokenError: If a GGUF file cannot say them: llama.cpp ends answers at some token in any case.
    """
    of_config: Any = model.generation_config
    ends = of_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    if not 0 < len(ends) <= len(END_JOBS) or not all(0 <= end < model.config.vocab_size for end in ends):
        raise ModelError(
            f"The generation config of {name!r} has eos_token_id = {of_config.eos_token_id!r}, and a GGUF file has "
            f"places for one to {len(END_JOBS)} tokens: set those that end an answer."
        )
    return ends


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    """Add the numbers that llama.cpp builds the model from."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a file, made when it is written.

    Args:
        name: llama.cpp's.
        kind: How its numbers are kept.
        parameter: The model's tensor.
        num_heads: Of the matrices of queries and keys, whose rows the file has in another order; None of others.
    """

    name: str
    kind: gguf.GGMLQuantizationType
    parameter: Tensor
    num_heads: int | None

    def num_bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return self.parameter.numel() // block * size

    def data(self) -> NDArray[Any]:
        """Its numbers as the file has them.

        Raises:
            ForetokenError: If one of them is too large to be kept like that, or is no number.
        """
        array: NDArray[Any] = self.parameter.detach().numpy()
        if self.num_heads is not None:
            array = neighbours(array, self.num_heads)
        with np.errstate(all="ignore"):  # what overflows is found below
            data = gguf.quants.quantize(np.ascontiguousarray(array), self.kind)
            finite = np.isfinite(gguf.quants.dequantize(data, self.kind)).all()
        if not finite:
            raise ModelError(
                f"The tensor {self.name} has a number that {self.kind.name} cannot keep: choose f32 or bf16, or "
                "download the weights again."
            )
        return data


def neighbours(weight: NDArray[Any], num_heads: int) -> NDArray[Any]:
    """Reorder the rows of each head: a pair that is rotated together is half a head apart in transformers.

    In llama.cpp's "llama" the two rows of a pair are neighbours.

    Args:
        weight: [num_heads * head_dim, columns], as transformers has it.
        num_heads: Heads of queries, or of keys.
    """
    return weight.reshape(num_heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _tensor(config: Any, name: str, parameter: Tensor, weights: str) -> _Tensor:
    """What becomes of a parameter."""
    module = name.removesuffix(".weight")
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    if module not in NAMES:
        _, _, layer, module = module.split(".", maxsplit=3)
        translated = f"blk.{layer}.{NAMES_IN_LAYER[module]}"
    else:
        translated = NAMES[module]
    kind = TYPES[weights if parameter.ndim > 1 else "f32"][0]
    return _Tensor(f"{translated}.weight", kind, parameter, heads.get(module.removeprefix("self_attn.")))


class _Writer(gguf.GGUFWriter):
    """Writes into a file that is open already."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(None, ARCHITECTURE)
        self._file = cast(BufferedWriter, file)

    def open_output_file(self, path: Path | None = None) -> None:
        self.fout, self.state = [self._file], WriterState.EMPTY

    def write_all(self, tensors: Sequence[_Tensor]) -> None:
        """Write what was added, then these tensors, each made when its turn comes."""
        for tensor in tensors:
            self.add_tensor_info(
                tensor.name, tensor.parameter.shape, np.dtype(np.float32), tensor.num_bytes(), raw_dtype=tensor.kind
            )
        self.write_header_to_file()
        self.write_kv_data_to_file()
        self.write_ti_data_to_file()
        for tensor in tensors:
            self.write_tensor_data(tensor.data())
