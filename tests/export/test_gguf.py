"""GGUF files, read back with the gguf package and compared with the model, by formulas of the tests' own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from foretoken.core.errors import ForetokenError, ModelError, RequestError
from foretoken.engines.transformers.loading import TINY
from foretoken.export import vocabulary
from foretoken.export.gguf import TYPES, export_gguf, neighbours
from foretoken.export.same_tokens import texts
from helpers.llama_folders import SPECIAL, llama_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llama_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    """The random model in every type."""
    made = tmp_path_factory.mktemp("gguf")
    for name in TYPES:
        export_gguf(str(folder), made / name, name)
    return {name: gguf.GGUFReader(made / name) for name in TYPES}


def weight_of(name: str, model: dict[str, torch.Tensor], heads: int, key_heads: int) -> np.ndarray[Any, Any]:
    """The rows that a tensor of a file must have, each taken from the model by its own formula."""
    part, _, kind = name.removesuffix(".weight").rpartition(".")
    if not part:
        top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
        return model[f"{top[kind]}.weight"].float().numpy()
    own = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    weight = model[f"model.layers.{part.removeprefix('blk.')}.{own[kind]}.weight"].float().numpy()
    if kind not in ("attn_q", "attn_k"):
        return weight
    width = len(weight) // (heads if kind == "attn_q" else key_heads)
    rows = []
    for row in range(len(weight)):
        head, within = divmod(row, width)
        rows.append(weight[head * width + within // 2 + (width // 2 if within % 2 else 0)])
    return np.stack(rows)


def numbers(tensor: Any) -> np.ndarray[Any, Any]:
    """A tensor's numbers in float32, from its bytes."""
    data = np.ascontiguousarray(tensor.data)
    shape = tuple(int(size) for size in reversed(tensor.shape))
    match tensor.tensor_type.name:
        case "F32" | "F16":
            return data.astype(np.float32).reshape(shape)
        case "BF16":
            return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        case "Q8_0":
            blocks = data.reshape(-1, 34)
            return (scales(blocks) * blocks[:, 2:].view(np.int8).astype(np.float32)).reshape(shape)
        case "Q4_0":
            blocks = data.reshape(-1, 18)
            steps = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32) - 8
            return (scales(blocks) * steps).reshape(shape)
        case other:
            raise AssertionError(other)


def scales(blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)


def allowed(weight: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    """The largest error of each number. A block's scale is a float16, so it is off by a 2048th itself."""
    if kind in ("F32", "F16", "BF16"):
        bits = {"F32": np.inf, "F16": 11, "BF16": 8}[kind]
        smallest = 2.0**-25 if kind == "F16" else 0.0  # half a step of numbers below the normal ones
        return np.maximum(np.abs(weight) * 2.0**-bits, smallest)
    blocks = np.abs(weight).reshape(-1, 32).max(axis=1, keepdims=True)
    steps = {"Q8_0": blocks / 127 * (0.5 + 127 / 2048), "Q4_0": blocks / 8 * (1 + 8 / 2048)}[kind]
    return np.broadcast_to(steps + 1e-7, (len(steps), 32)).reshape(weight.shape)


@pytest.mark.parametrize("name", TYPES)
def test_every_tensor_is_the_models_within_what_the_type_can_tell(name, written, folder):
    model = load_file(folder / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in written[name].tensors}
    assert len(tensors) == len(model)
    for tensor in tensors.values():
        wanted = weight_of(tensor.name, model, heads=4, key_heads=2)
        kind = tensor.tensor_type.name
        assert kind == (name.upper() if wanted.ndim > 1 else "F32")
        error = np.abs(numbers(tensor) - wanted)
        assert (error <= allowed(wanted, kind)).all(), tensor.name
        if name != "f32" and wanted.ndim > 1:
            assert error.max() > 0  # the bound is not met by chance


def test_the_bundled_model_is_bit_equal_in_f32_and_in_its_own_bf16(tmp_path):
    model = load_file(TINY / "model.safetensors")
    for name in ("f32", "bf16"):
        export_gguf("tiny", tmp_path / "x.gguf", name)
        tensors = gguf.GGUFReader(tmp_path / "x.gguf").tensors
        assert {tensor.name for tensor in tensors} >= {"token_embd.weight", "blk.5.attn_k.weight"}
        assert "output.weight" not in {tensor.name for tensor in tensors}  # the embedding's, as llama.cpp then takes it
        for tensor in tensors:
            assert (numbers(tensor) == weight_of(tensor.name, model, heads=4, key_heads=2)).all()


def test_queries_in_the_models_own_order_would_be_found():
    """The control: the order of rows matters, and the formulas above tell."""
    weight = np.arange(16.0).reshape(8, 2)
    assert neighbours(weight, 2)[:, 0].tolist() == [0, 4, 2, 6, 8, 12, 10, 14]
    model = {"model.layers.0.self_attn.q_proj.weight": torch.tensor(weight)}
    assert (weight_of("blk.0.attn_q.weight", model, heads=2, key_heads=1) == neighbours(weight, 2)).all()
    assert (weight_of("blk.0.attn_q.weight", model, heads=2, key_heads=1) != weight).any()


def test_the_file_says_what_the_config_says(written):
    values = {field.name: field.contents() for field in written["q8_0"].fields.values()}
    assert {key: value for key, value in values.items() if key.startswith(("llama.", "general."))} == {
        "general.architecture": "llama",
        "general.name": values["general.name"],
        "general.file_type": 7,
        "general.quantization_version": 2,
        "llama.vocab_size": 900 + 1 + 12,
        "llama.context_length": 256,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 5000.0,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
    }
    assert [file.fields["general.file_type"].contents() for file in written.values()] == [0, 1, 32, 7, 2]


def test_the_file_says_what_the_tokenizer_says(written, folder):
    values = {field.name: field.contents() for field in written["f32"].fields.values()}
    said = {key.removeprefix("tokenizer."): value for key, value in values.items() if key.startswith("tokenizer.")}
    tokens, types, merges = (said.pop(f"ggml.{name}") for name in ("tokens", "token_type", "merges"))
    assert said == {
        "ggml.model": "gpt2",
        "ggml.pre": "gpt-2",
        "ggml.add_bos_token": False,
        "ggml.add_eos_token": False,
        "ggml.bos_token_id": 0,
        "ggml.eos_token_id": 1,
        "ggml.eot_token_id": 2,
        "ggml.padding_token_id": 3,
        "chat_template": "{{ messages }}",
    }
    file = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    assert merges == [" ".join(merge) for merge in file["model"]["merges"]]
    assert all(tokens[i] == token for token, i in file["model"]["vocab"].items())
    kinds = [gguf.TokenType(kind).name for kind in types]
    assert kinds[:4] == ["CONTROL"] * 4 and tokens[:4] == SPECIAL
    assert set(kinds[4:900]) == {"NORMAL"}
    assert (tokens[900], kinds[900]) == ("<tool>", "USER_DEFINED")
    assert kinds[901:] == ["UNUSED"] * 12 and len(set(tokens)) == len(tokens) == 913


@pytest.mark.parametrize(("pre", "adds"), [("gpt-2", False), ("smollm", False), ("llama-bpe", True)])
def test_each_known_way_to_split_a_text_is_named(pre, adds, tmp_path):
    export_gguf(str(llama_folder(tmp_path / "model", pre)), tmp_path / "x", "f16")
    fields = gguf.GGUFReader(tmp_path / "x").fields
    assert fields["tokenizer.ggml.pre"].contents() == pre
    assert fields["tokenizer.ggml.add_bos_token"].contents() is adds


def test_the_texts_are_a_hundred_different_ones():
    assert len(set(texts(["<x>"]))) == 100


CONFIGS = {
    "attention_bias": (True, "its attention has biases"),
    "mlp_bias": (True, "its MLP has biases"),
    "hidden_act": ("gelu", "its activation is 'gelu'"),
    "quantization_config": ({"quant_method": "gptq", "bits": 4}, "its weights are quantized already"),
    "rope_parameters": ({"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}, r"its positions are scaled"),
    "rope_scaling": ({"rope_type": "linear", "factor": 2.0}, r"its positions are scaled"),
    "model_type": ("qwen2", "'qwen2', and GGUF files are written of 'llama' alone"),
}


def edited(folder: Path, copy: Path, file: str, **changes: Any) -> str:
    """A copy of a model's folder with other values in one of its JSON files."""
    copy.mkdir()
    for path in folder.iterdir():
        if path.name != file:
            os.link(path, copy / path.name)
    values = json.loads((folder / file).read_text("utf-8"))
    (copy / file).write_text(json.dumps(values | changes))
    return str(copy)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused(name, folder, tmp_path):
    value, words = CONFIGS[name]
    other = edited(folder, tmp_path / "model", "config.json", **{name: value})
    with pytest.raises(ModelError, match=words):
        export_gguf(other, tmp_path / "x.gguf", "f32")
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("ends", [None, [], [1, 2, 3, 4], [-1], [99_999]])
def test_answers_that_end_where_no_file_can_say_are_refused(ends, folder, tmp_path):
    other = edited(folder, tmp_path / "model", "generation_config.json", eos_token_id=ends)
    with pytest.raises(ModelError, match="eos_token_id"):
        export_gguf(other, tmp_path / "x.gguf", "f32")
    assert os.listdir(tmp_path) == ["model"]


def test_a_text_that_ends_with_another_token_than_answers_is_refused(folder, tmp_path):
    adds = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    }
    ending = Path(edited(folder, tmp_path / "ending", "tokenizer.json", post_processor=adds))
    export_gguf(str(ending), tmp_path / "x.gguf", "f32")
    assert gguf.GGUFReader(tmp_path / "x.gguf").fields["tokenizer.ggml.add_eos_token"].contents() is True
    other = edited(ending, tmp_path / "model", "generation_config.json", eos_token_id=2)
    with pytest.raises(ModelError, match="a token that does not end its answers"):
        export_gguf(other, tmp_path / "x.gguf", "f32")


TOKENIZERS: dict[str, tuple[Any, str]] = {
    "normalizer": ({"type": "NFC"}, "does not normalize text"),
    "pre_tokenizer": ({"type": "Whitespace"}, "known are those of GPT-2, SmolLM and Llama 3"),
    "decoder": ({"type": "Fuse"}, "makes text of the bytes of tokens"),
    "post_processor": (
        {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|user|>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|user|>": {"id": "<|user|>", "ids": [2], "tokens": ["<|user|>"]}},
        },
        "can add none but bos and eos",
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(name, folder, tmp_path):
    value, words = TOKENIZERS[name]
    other = edited(folder, tmp_path / "model", "tokenizer.json", **{name: value})
    with pytest.raises(ModelError, match=words):
        export_gguf(other, tmp_path / "x.gguf", "f32")
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ignore_merges": True}, "no name in llama.cpp"),
        ({"dropout": 0.1}, "byte-level BPE only"),
        ({"byte_fallback": True}, "byte-level BPE only"),
        ({"continuing_subword_prefix": "##"}, "does not mark parts of words"),
    ],
)
def test_another_kind_of_bpe_is_refused(changes, words, folder, tmp_path):
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    if "continuing_subword_prefix" in changes:
        model["merges"] = []
    other = edited(folder, tmp_path / "model", "tokenizer.json", model=model | changes)
    with pytest.raises(ModelError, match=words):
        export_gguf(other, tmp_path / "x.gguf", "f32")


def test_a_tokenizer_without_a_byte_is_refused(folder, tmp_path):
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    model["merges"] = []
    del model["vocab"]["q"]
    other = edited(folder, tmp_path / "model", "tokenizer.json", model=model)
    with pytest.raises(ModelError, match="a token for every byte, and this tokenizer lacks 1"):
        export_gguf(other, tmp_path / "x.gguf", "f32")


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_a_token_that_takes_its_surroundings_along_is_refused(flag, folder, tmp_path):
    added = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    other = edited(folder, tmp_path / "model", "tokenizer.json", added_tokens=[*added[:-1], added[-1] | {flag: True}])
    with pytest.raises(ModelError, match="around '<tool>'"):
        export_gguf(other, tmp_path / "x.gguf", "f32")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="token 900, and the model has 900"):
        export_gguf(str(llama_folder(tmp_path / "model", unused=-1)), tmp_path / "x.gguf", "f32")


def test_an_unused_row_never_takes_the_name_of_a_token(folder, tmp_path):
    added = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    taken = [*added[:-1], added[-1] | {"content": "[PAD905]"}]
    other = edited(folder, tmp_path / "model", "tokenizer.json", added_tokens=taken)
    with pytest.raises(ModelError, match="rename it"):
        export_gguf(other, tmp_path / "x.gguf", "f32")


def test_a_number_that_the_type_cannot_keep_is_refused(folder, tmp_path):
    other = edited(folder, tmp_path / "model", "config.json")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e5
    os.unlink(tmp_path / "model" / "model.safetensors")
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    (tmp_path / "x.gguf").write_text("what was there")
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight has a number that F16 cannot keep"):
        export_gguf(other, tmp_path / "x.gguf", "f16")
    assert (tmp_path / "x.gguf").read_text() == "what was there"
    assert sorted(os.listdir(tmp_path)) == ["model", "x.gguf"]
    export_gguf(other, tmp_path / "x.gguf", "bf16")


def test_rows_that_make_no_whole_blocks_are_refused(tmp_path):
    other = str(llama_folder(tmp_path / "model", intermediate_size=100))
    with pytest.raises(RequestError, match="32 weights together, and rows have 100: choose f16"):
        export_gguf(other, tmp_path / "x.gguf", "q4_0")
    export_gguf(other, tmp_path / "x.gguf", "f16")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("model", "could not be written"),
        ("model/config.json", "is read by this command"),
        ("model/config.json/x", "could not be written"),
        ("/dev/null", "is no file"),
    ],
)
def test_a_place_that_takes_no_file_is_refused_before_the_work(path, words, folder, tmp_path, monkeypatch):
    other = edited(folder, tmp_path / "model", "config.json")
    monkeypatch.setattr("foretoken.export.gguf.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ForetokenError, match=words):
        export_gguf(other, tmp_path / path, "f32")


def test_a_type_that_there_is_not_is_refused(folder, tmp_path):
    with pytest.raises(RequestError, match="choose one of f32, f16, bf16, q8_0, q4_0"):
        export_gguf(str(folder), tmp_path / "x.gguf", "q5_k")


def test_without_llama_cpp_a_warning_says_that_nothing_was_compared(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    assert export_gguf(str(folder), tmp_path / "x.gguf", "f32") == 0
    assert "not compared" in caplog.text and "pip install llama-cpp-python" in caplog.text


def test_the_names_of_pre_tokenizers_stand_for_different_steps():
    steps = [json.dumps(known) for known in vocabulary.PRE_TOKENIZERS.values()]
    assert len(set(steps)) == len(steps)
