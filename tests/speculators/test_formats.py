"""Speculators on disk: files written by hand from the specification are read, and what is written follows it."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foretoken.core.errors import ForetokenError
from foretoken.speculators.blockwise import BlockwiseConfig, BlockwiseHeads
from foretoken.speculators.formats import load_speculator, save_speculator
from foretoken.speculators.lstm import LSTMSpeculator, LSTMSpeculatorConfig
from foretoken.speculators.medusa import MedusaConfig, MedusaHeads
from foretoken.speculators.mlp import MLPSpeculator, MLPSpeculatorConfig
from foretoken.speculators.module import SpeculatorModule

WIDTH, VOCAB, INNER = 6, 11, 4
Arrays = dict[str, NDArray[Any]]
Json = dict[str, Any]
NAMES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I8": np.int8}


def write_safetensors(path: Path, arrays: Arrays) -> None:
    """The format by hand: the header's length in 8 bytes, a JSON header, the bytes of the tensors."""
    header: Json = {}
    body = b""
    for name, array in arrays.items():
        dtype = next(short for short, kind in NAMES.items() if array.dtype == kind)
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + array.nbytes],
        }
        body += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def read_safetensors(path: Path) -> Arrays:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    arrays = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(data[start:end], NAMES[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def random(*shape: int, dtype: type = np.float32) -> NDArray[Any]:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def folder_of(path: Path, config: Json, arrays: Arrays, name: str = "model.safetensors") -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    write_safetensors(path / name, arrays)
    return path


def output_head() -> nn.Linear:
    head = nn.Linear(WIDTH, VOCAB, bias=False).requires_grad_(False)
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(2))
    return head


def load(folder: Path, head: nn.Module | None = None) -> Any:
    return load_speculator(folder, WIDTH, VOCAB, head or output_head())


def shape_of(tied: bool = False) -> Json:
    """The config of ibm-fms/llama3-8b-accelerator or, tied, of llama2-70b-accelerator, with small numbers."""
    ties = {"tie_weights": True, "scale_input": True} if tied else {}
    return {
        "architectures": ["MLPSpeculatorPreTrainedModel"],
        "emb_dim": WIDTH,
        "inner_dim": INNER,
        "model_type": "mlp_speculator",
        "n_candidates": 5,
        "n_predict": 3,
        "top_k_tokens_per_head": [4, 3, 2],
        "torch_dtype": "float32",
        "transformers_version": "4.38.2",
        "vocab_size": VOCAB,
        **ties,
    }


def tensors_of(stages: int = 3, projections: int = 3, prefix: str = "speculator.", dtype: type = np.float32) -> Arrays:
    found = {}
    for i in range(projections):
        found[f"{prefix}proj.{i}.weight"] = random(INNER, INNER if i else WIDTH, dtype=dtype) + dtype(i)
    for i in range(stages):
        found[f"{prefix}emb.{i}.weight"] = random(VOCAB, INNER, dtype=dtype) + dtype(i)
        found[f"{prefix}head.{i}.weight"] = random(VOCAB, INNER, dtype=dtype) - dtype(i)
        found[f"{prefix}ln.{i}.weight"] = random(INNER, dtype=dtype) + dtype(i)
        found[f"{prefix}ln.{i}.bias"] = random(INNER, dtype=dtype) - dtype(i)
    return found


def medusa_arrays(heads: int = 2, layers: int = 2) -> Arrays:
    """FasterDecoding's names: a Sequential of residual blocks and a projection, for each head."""
    found = {}
    for i in range(heads):
        for j in range(layers):
            found[f"{i}.{j}.linear.weight"] = random(WIDTH, WIDTH) + i + j
            found[f"{i}.{j}.linear.bias"] = random(WIDTH) + i + j
        found[f"{i}.{layers}.weight"] = random(VOCAB, WIDTH) + i
    return found


MEDUSA = {"medusa_num_heads": 2, "medusa_num_layers": 2, "base_model_name_or_path": "lmsys/vicuna-7b-v1.3"}
VLLM = {
    "architectures": ["MedusaModel"],
    "model_type": "medusa",
    "hidden_size": WIDTH,
    "vocab_size": VOCAB,
    "num_heads": 2,
    "num_hidden_layers": 2,
    "medusa_fc_bias": True,
    "truncated_vocab_size": VOCAB,
    "max_paths": 64,
    "topk": 10,
}
BLOCKWISE = {
    "architectures": ["BlockwiseHeads"],
    "model_type": "blockwise_heads",
    "hidden_size": WIDTH,
    "vocab_size": VOCAB,
    "num_heads": 3,
    "filter_size": 5,
}


def blockwise_arrays() -> Arrays:
    return {
        "up.weight": random(15, WIDTH),
        "up.bias": random(15),
        "down.weight": random(18, 15),
        "down.bias": random(18),
    }


def for_vllm(arrays: Arrays, layers: int = 2) -> Arrays:
    """The names that vLLM maps FasterDecoding's to."""
    found = {}
    for name, array in arrays.items():
        head, layer, *rest = name.split(".")
        renamed = f"lm_heads.{head}.weight" if int(layer) == layers else f"blocks.{head}.layers.{layer}.{rest[1]}"
        found[f"medusa_heads.{renamed}"] = array
    return found


LSTM = {
    "architectures": ["ArcticLSTMSpeculatorPreTrainedModel"],
    "base_model_archs": ["LlamaForCausalLM"],
    "method": "sum_lstm",
    "model_type": "mlp_speculator",
    "vocab_size": VOCAB,
    "input_hidden_dim": WIDTH,
    "inner_dim": "4",
    "proj_dim": "4",
    "emb_dim": "4",
    "n_predict": 3,
    "tie_weights": True,
    "tie_lstm_embs": True,
    "scale_input": True,
}


def lstm_arrays(prefix: str = "") -> Arrays:
    """As ArcticTraining's state_dict names them: what gates and stages share is there for each of them."""
    found = {f"head.{i}.weight": random(VOCAB, INNER) for i in range(3)}
    for k, gate in enumerate(("forget", "input", "cell", "output")):
        found[f"{gate}_emb.0.weight"] = random(VOCAB, INNER) + 1
        for i in range(2):
            found[f"{gate}_proj.{i}.weight"] = random(INNER, INNER if i else WIDTH) + k + 10 * i
    for name in ("cell_ln", "state_ln"):
        found |= {f"{name}.0.weight": random(INNER), f"{name}.0.bias": random(INNER) + 1}
    return {prefix + name: array for name, array in found.items()}


def is_copy(name: str) -> bool:
    return name in ("head.1.weight", "head.2.weight") or ("_emb" in name and "forget" not in name)


# Reading what others write


@pytest.mark.parametrize("prefix", ["speculator.", ""])
def test_ibms_layout_by_hand(tmp_path: Path, prefix: str) -> None:
    arrays = tensors_of(prefix=prefix)
    module = load(folder_of(tmp_path, shape_of(), arrays))
    assert isinstance(module, MLPSpeculator)
    assert module.config == MLPSpeculatorConfig(VOCAB, WIDTH, INNER, 3, top_k_tokens_per_head=(4, 3, 2))
    assert not module.training
    state = module.state_dict()
    assert {f"{prefix}{name}" for name in state} == set(arrays)
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor, arrays[f"{prefix}{name}"])


@pytest.mark.parametrize("copies", [False, True])
def test_tied_stages_need_five_groups_of_tensors(tmp_path: Path, copies: bool) -> None:
    arrays = tensors_of(1, 2)
    if copies:  # as a state_dict of the reference code names them again
        for name in list(arrays):
            for i in (1, 2):
                arrays.setdefault(name.replace(".1." if "proj" in name else ".0.", f".{i}."), arrays[name])
        arrays["speculator.proj.1.weight"] = arrays["speculator.proj.2.weight"] = tensors_of(1, 2)[
            "speculator.proj.1.weight"
        ]
    module = load(folder_of(tmp_path, shape_of(tied=True), arrays))
    assert module.config.tie_weights and module.config.scale_input
    assert len(module.emb) == len(module.head) == len(module.ln) == 1 and len(module.proj) == 2
    np.testing.assert_array_equal(module.proj[1].weight.detach(), arrays["speculator.proj.1.weight"])


def test_stages_that_are_said_to_be_tied_and_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ForetokenError, match=r"ties the weights, but emb\.1\.weight differs"):
        load(folder_of(tmp_path, shape_of(tied=True), tensors_of()))


@pytest.mark.parametrize(
    "architectures", [["ArcticMLPSpeculatorPreTrainedModel"], "ArcticMLPSpeculatorPreTrainedModel"]
)
def test_arctics_layout_by_hand(tmp_path: Path, architectures: object) -> None:
    config = shape_of(tied=True) | {"architectures": architectures, "base_model_archs": ["LlamaForCausalLM"]}
    assert isinstance(load(folder_of(tmp_path, config, tensors_of(1, 2, prefix=""))), MLPSpeculator)


@pytest.mark.parametrize("prefix", ["speculator.", ""])
@pytest.mark.parametrize("name", ["ArcticLSTMSpeculatorPreTrainedModel", "MLPVariantSpeculatorPreTrainedModel"])
def test_arctics_lstm_by_hand(tmp_path: Path, prefix: str, name: str) -> None:
    arrays = lstm_arrays()
    module = load(folder_of(tmp_path, LSTM | {"architectures": [name]}, lstm_arrays(prefix)))
    assert isinstance(module, LSTMSpeculator)
    assert module.config == LSTMSpeculatorConfig(VOCAB, WIDTH, INNER, 3, scale_input=True)
    for i in range(2):
        gates = [arrays[f"{gate}_proj.{i}.weight"] for gate in ("forget", "input", "output", "cell")]
        np.testing.assert_array_equal(module.state_dict()[f"proj.{i}.weight"], np.concatenate(gates))
    np.testing.assert_array_equal(module.state_dict()["emb.weight"], arrays["forget_emb.0.weight"])
    save_speculator(module, tmp_path / "again", "arctic", base_architectures=("LlamaForCausalLM",))
    written = read_safetensors(tmp_path / "again" / "model.safetensors")
    assert written.keys() == arrays.keys() - {"head.1.weight", "head.2.weight"}
    for name, array in written.items():
        np.testing.assert_array_equal(array, arrays[name])
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config.items() >= (LSTM | {"torch_dtype": "float32"}).items()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "sum_rnn"}, "method 'sum_rnn'"),
        ({"tie_weights": False}, "tie_weights False"),
        ({"tie_lstm_embs": False}, "tie_lstm_embs False"),
        ({"inner_dim": "4.4"}, r"'4\.4' as inner_dim"),
        ({"proj_dim": "8"}, "must be equal"),
        ({"input_hidden_dim": 8}, "states of width 8"),
        ({"inner_dim": 5, "proj_dim": 5, "emb_dim": 5}, "has the shape"),
    ],
)
def test_an_lstm_config_that_cannot_be_honoured(change: Json, words: str, tmp_path: Path) -> None:
    with pytest.raises(ForetokenError, match=words):
        load(folder_of(tmp_path, LSTM | change, lstm_arrays()))


def test_gates_that_are_said_to_be_tied_and_differ_are_refused(tmp_path: Path) -> None:
    arrays = lstm_arrays() | {"cell_emb.0.weight": random(VOCAB, INNER)}
    with pytest.raises(ForetokenError, match=r"ties the weights, but cell_emb\.0\.weight differs from emb\.weight"):
        load(folder_of(tmp_path, LSTM, arrays))


def test_both_layouts_of_medusa_map_onto_one_another(tmp_path: Path) -> None:
    arrays = medusa_arrays()
    one = load(folder_of(tmp_path / "a", MEDUSA, arrays, "medusa_lm_head.safetensors"))
    other = load(folder_of(tmp_path / "b", VLLM, for_vllm(arrays)))
    renamed = load(folder_of(tmp_path / "c", VLLM, arrays))  # vLLM takes FasterDecoding's names, too
    assert one.config == other.config == renamed.config == MedusaConfig(VOCAB, WIDTH, 2, 2)
    state = torch.randn(WIDTH)
    assert torch.equal(one.all(state), other.all(state)) and torch.equal(one.all(state), renamed.all(state))
    save_speculator(one, tmp_path / "a2", "vllm")
    save_speculator(other, tmp_path / "b2", "published")
    for name, array in read_safetensors(tmp_path / "a2" / "model.safetensors").items():
        np.testing.assert_array_equal(array, for_vllm(arrays)[f"medusa_heads.{name}"])
    written = read_safetensors(tmp_path / "b2" / "medusa_lm_head.safetensors")
    assert written.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(written[name], array)


@pytest.mark.parametrize("name", ["lm_head.weight", "lm_heads.0.weight"])
def test_medusa_heads_that_share_the_output_and_have_no_bias(tmp_path: Path, name: str) -> None:
    arrays = {f"blocks.{i}.layers.0.weight": random(WIDTH, WIDTH) + i for i in range(2)} | {name: random(VOCAB, WIDTH)}
    config = VLLM | {"num_hidden_layers": 1, "original_lm_head": True, "medusa_fc_bias": False}
    module = load(folder_of(tmp_path / "a", config, arrays))
    assert module.config == MedusaConfig(VOCAB, WIDTH, 2, 1, fc_bias=False, shared_output=True)
    assert not module.lm_heads[0].weight.requires_grad and module.blocks[0].layers[0].weight.requires_grad
    save_speculator(module, tmp_path / "b")  # a layout without sharing: the same function all the same
    state = torch.randn(WIDTH)
    torch.testing.assert_close(load(tmp_path / "b").all(state), module.all(state))


def test_blockwise_heads_by_hand(tmp_path: Path) -> None:
    head = output_head()
    module = load(folder_of(tmp_path, BLOCKWISE, blockwise_arrays()), head)
    assert isinstance(module, BlockwiseHeads) and module.num_heads == 3
    assert torch.equal(module.all(torch.ones(WIDTH)), module.vectors(torch.ones(WIDTH)) @ head.weight.T)


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    arrays = list(tensors_of().items())
    folder = folder_of(tmp_path, shape_of(), dict(arrays[:4]), "model-00001-of-00002.safetensors")
    folder_of(tmp_path, shape_of(), dict(arrays[4:]), "model-00002-of-00002.safetensors")
    shard = {name: f"model-0000{1 + (i >= 4)}-of-00002.safetensors" for i, (name, _) in enumerate(arrays)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard}))
    assert load(folder).num_heads == 3
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ForetokenError, match="model-00002"):
        load(folder)


def test_the_dtype_is_the_files(tmp_path: Path) -> None:
    half = load(folder_of(tmp_path, shape_of(), tensors_of(dtype=np.float16)))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    mixed = tensors_of(dtype=np.float16) | {"speculator.ln.0.weight": random(INNER)}
    assert {p.dtype for p in load(folder_of(tmp_path, shape_of(), mixed)).parameters()} == {torch.float32}


# Writing


def speculators() -> list[tuple[SpeculatorModule, str]]:
    torch.manual_seed(1)
    plain = MLPSpeculator(MLPSpeculatorConfig(VOCAB, WIDTH, INNER, 3, top_k_tokens_per_head=(5, 3, 1), n_candidates=7))
    tied = MLPSpeculator(MLPSpeculatorConfig(VOCAB, WIDTH, INNER, 4, tie_weights=True, scale_input=True))
    medusa = MedusaHeads(MedusaConfig(VOCAB, WIDTH, 3, 2), output_head())
    for parameter in medusa.blocks.parameters():
        nn.init.normal_(parameter)
    shared = MedusaHeads(MedusaConfig(VOCAB, WIDTH, 3, 1, fc_bias=False, shared_output=True), output_head())
    return [
        (plain, "published"),
        (plain, "arctic"),
        (tied, "published"),
        (tied, "arctic"),
        (LSTMSpeculator(LSTMSpeculatorConfig(VOCAB, WIDTH, INNER, 3, scale_input=True)), "arctic"),
        (medusa, "published"),
        (medusa, "vllm"),
        (shared, "vllm"),
        (BlockwiseHeads(BlockwiseConfig(VOCAB, WIDTH, 3, 5), output_head()), "published"),
    ]


@pytest.mark.parametrize(
    ("module", "layout"), speculators(), ids=lambda x: x if isinstance(x, str) else type(x).__name__
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_trip_changes_nothing(module: Any, layout: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    module = module.to(dtype)
    save_speculator(module, tmp_path / "new" / "folder", layout, base_architectures=("LlamaForCausalLM",))
    again = load(tmp_path / "new" / "folder")
    assert type(again) is type(module) and again.config == module.config
    assert again.state_dict().keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor) and again.state_dict()[name].dtype == dtype
    assert {p.requires_grad for p in again.parameters()} == {p.requires_grad for p in module.parameters()}
    assert json.loads((tmp_path / "new" / "folder" / "config.json").read_text())["torch_dtype"] in str(dtype)


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_written_has_the_published_names_and_keys(tied: bool, tmp_path: Path) -> None:
    config = MLPSpeculatorConfig(VOCAB, WIDTH, INNER, 3, tie_weights=tied, scale_input=tied)
    module = MLPSpeculator(config)
    save_speculator(module, tmp_path, base_model="ours")
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == {key: value for key, value in shape_of().items() if key != "transformers_version"} | {
        "tie_weights": tied,
        "scale_input": tied,
        "base_model_name_or_path": "ours",
    }
    expected = tensors_of(1, 2) if tied else tensors_of()
    arrays = read_safetensors(tmp_path / "model.safetensors")
    assert {name: array.shape for name, array in arrays.items()} == {n: a.shape for n, a in expected.items()}
    np.testing.assert_array_equal(arrays["speculator.emb.0.weight"], module.state_dict()["emb.0.weight"])


def test_arctics_config_names_the_bases_architecture(tmp_path: Path) -> None:
    module = MLPSpeculator(MLPSpeculatorConfig(VOCAB, WIDTH, INNER, 3))
    with pytest.raises(ForetokenError, match="base_architectures"):
        save_speculator(module, tmp_path, "arctic")
    save_speculator(module, tmp_path, "arctic", base_architectures=("LlamaForCausalLM",))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["ArcticMLPSpeculatorPreTrainedModel"]  # a list of exactly one
    assert config["base_model_archs"] == ["LlamaForCausalLM"]
    assert config["top_k_tokens_per_head"] == [4, 3, 2]


def test_a_speculator_replaces_the_one_that_stood_there(tmp_path: Path) -> None:
    modules = [(module, layout) for module, layout in speculators() if isinstance(module, MLPSpeculator | MedusaHeads)]
    for module, layout in (*modules, *modules[::-1]):
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
        save_speculator(module, tmp_path, layout, base_architectures=("A",))  # type: ignore[arg-type]
        assert type(load(tmp_path)) is type(module)


def test_a_layout_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ForetokenError, match="MLPSpeculator cannot be written in the layout 'vllm'"):
        save_speculator(MLPSpeculator(MLPSpeculatorConfig(VOCAB, WIDTH, INNER, 3)), tmp_path, "vllm")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ForetokenError, match="could not be written"):
        save_speculator(MLPSpeculator(MLPSpeculatorConfig(VOCAB, WIDTH, INNER, 3)), tmp_path / "file" / "folder")


# Bad input


def without(key: str) -> Json:
    return {name: value for name, value in shape_of().items() if name != key}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (without("n_predict"), "has no n_predict"),
        (without("emb_dim"), "has no emb_dim"),
        (without("vocab_size"), "has no vocab_size"),
        (without("inner_dim"), "has no inner_dim"),
        (shape_of() | {"n_predict": "3"}, "'3' as n_predict, which must be an integer"),
        (shape_of() | {"n_predict": True}, "True as n_predict"),
        (shape_of() | {"n_predict": 0}, "n_predict"),
        (shape_of() | {"tie_weights": "yes"}, "'yes' as tie_weights"),
        (shape_of() | {"top_k_tokens_per_head": [5, 4]}, "must be 3 positive numbers"),
        (shape_of() | {"top_k_tokens_per_head": "543"}, "must be a list of integers"),
        (shape_of() | {"architectures": ["LlamaForCausalLM"]}, "'LlamaForCausalLM'"),
        (shape_of() | {"architectures": ["ArcticLSTMSpeculatorPreTrainedModel"]}, "method None"),
        (shape_of() | {"architectures": ["A", "B"]}, "several architectures"),
        (shape_of() | {"architectures": 3}, "several architectures"),
        ({}, "nothing that is known"),
        ({"model_type": "llama"}, "'llama'"),
        (shape_of() | {"emb_dim": WIDTH + 1}, "states of width 7, and the base's is 6"),
        (shape_of() | {"vocab_size": VOCAB + 1}, "a vocabulary of size 12, and the base's is 11"),
        (shape_of() | {"n_predict": 4, "top_k_tokens_per_head": []}, r"no tensor for emb\.3\.weight, head\.3\.weight"),
        (shape_of() | {"n_predict": 2, "top_k_tokens_per_head": [2, 1]}, r"no place for: emb\.2\.weight"),
        (shape_of() | {"inner_dim": INNER + 1}, r"emb\.0\.weight has the shape \[11, 4\] instead of \[11, 5\]"),
        (shape_of() | {"inner_dim": 10**15}, r"1000000000000000 as inner_dim, which must be an integer from 0 to"),
        (shape_of() | {"n_predict": 10**6}, r"1000000 as n_predict, which must be an integer from 0 to 64"),
        (shape_of() | {"emb_dim": -1}, r"-1 as emb_dim"),
        (MEDUSA, r"lm_heads\.0\.weight or 0\.1\.weight"),
    ],
)
def test_a_config_that_does_not_describe_the_file(config: Json, words: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, config, tensors_of())
    with pytest.raises(ForetokenError, match=words) as error:
        load(folder)
    assert str(folder) in str(error.value) and str(error.value).endswith(".") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"truncated_vocab_size": 5}, "truncated_vocab_size 5"),
        ({"logit_scale": 2.0}, "logit_scale 2.0"),
        ({"num_heads": 3, "num_attention_heads": 0}, r"no tensor for blocks\.2"),
        ({"vocab_size": 9, "truncated_vocab_size": None}, "vocabulary of size 9"),
        ({"hidden_size": 9}, "states of width 9"),
        ({"original_lm_head": True}, r"no place for: lm_heads\.1\.weight"),
    ],
)
def test_a_medusa_config_that_cannot_be_honoured(change: Json, words: str, tmp_path: Path) -> None:
    with pytest.raises(ForetokenError, match=words):
        load(folder_of(tmp_path, VLLM | change, for_vllm(medusa_arrays())))


def test_every_missing_tensor_and_every_wrong_shape_is_named(tmp_path: Path) -> None:
    kinds: list[tuple[Json, Arrays]] = [
        (shape_of(), tensors_of()),
        (shape_of(tied=True), tensors_of(1, 2)),
        (MEDUSA, medusa_arrays()),
        (BLOCKWISE, blockwise_arrays()),
        (LSTM, {name: array for name, array in lstm_arrays().items() if not is_copy(name)}),
    ]
    for config, arrays in kinds:
        for name, array in arrays.items():
            fewer = {other: value for other, value in arrays.items() if other != name}
            with pytest.raises(ForetokenError, match="no tensor for"):
                load(folder_of(tmp_path, config, fewer))
            with pytest.raises(ForetokenError, match=r"has the shape|for a base|no tensor for the first head"):
                load(folder_of(tmp_path, config, arrays | {name: array[:-1]}))
            with pytest.raises(ForetokenError, match=r"has the shape|for a base|no tensor for the first head"):
                load(folder_of(tmp_path, config, arrays | {name: array[None]}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    arrays = tensors_of()
    arrays["speculator.ln.1.bias"][2] = value
    with pytest.raises(ForetokenError, match=r"ln\.1\.bias has values that are not finite numbers"):
        load(folder_of(tmp_path, shape_of(), arrays))


def test_integers_are_refused(tmp_path: Path) -> None:
    arrays = tensors_of() | {"speculator.emb.1.weight": np.ones((VOCAB, INNER), np.int8)}
    with pytest.raises(ForetokenError, match=r"emb\.1\.weight has the dtype torch\.int8"):
        load(folder_of(tmp_path, shape_of(), arrays))


class Trap:
    """What a pickle can do to whoever opens it."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (Path("opened"),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "medusa_lm_head.pt", "model.safetensors"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(shape_of()))
    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ForetokenError, match="no safetensors file" if name.startswith("model") else "a pickle"):
        load(tmp_path)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff" * 100, struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 3) + b"nay"]
)
def test_a_file_that_is_not_what_it_says(content: bytes, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, shape_of(), tensors_of())
    whole = (folder / "model.safetensors").read_bytes()
    for damaged in (content, whole[:-5], whole[: len(whole) // 3]):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ForetokenError, match=r"model\.safetensors is missing, damaged or no safetensors file"):
            load(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"3", b"[" * 100_000])
def test_a_config_that_is_none(content: bytes, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, shape_of(), tensors_of())
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ForetokenError, match=r"config\.json is no JSON"):
        load(folder)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ForetokenError, match=r"config\.json cannot be read"):
        load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps(shape_of()))
    with pytest.raises(ForetokenError, match=r"has no model\.safetensors"):
        load(tmp_path)
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ForetokenError, match="damaged"):
        load(tmp_path)


def test_the_index_leads_to_no_other_folder(tmp_path: Path) -> None:
    folder_of(tmp_path / "other", shape_of(), tensors_of(), "stolen.safetensors")
    folder = folder_of(tmp_path / "own", shape_of(), tensors_of())
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other/stolen.safetensors"}}))
    with pytest.raises(ForetokenError, match=r"stolen\.safetensors is missing"):
        load(folder)
    for bad in ({}, {"weight_map": []}, {"weight_map": {"a": 3}}):
        index.write_text(json.dumps(bad))
        with pytest.raises(ForetokenError, match="no weight_map"):
            load(folder)


def test_what_is_loaded_guesses_as_what_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(3)
    states: Tensor = torch.randn(2, 4, WIDTH)
    tokens = torch.randint(VOCAB, (2, 9))
    for i, (module, layout) in enumerate(speculators()):
        save_speculator(module, tmp_path / str(i), layout, base_architectures=("A",))  # type: ignore[arg-type]
        for one, other in zip(
            module.losses(states, tokens), load(tmp_path / str(i)).losses(states, tokens), strict=True
        ):
            assert torch.equal(one, other)
