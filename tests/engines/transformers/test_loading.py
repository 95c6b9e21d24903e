"""Models from folders: whose code runs, and what is said of folders that are damaged or do not fit."""

from __future__ import annotations

import builtins
import io
import json
import logging
import os
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import GenerationConfig, PreTrainedTokenizerFast, dynamic_module_utils

import foretoken
from foretoken import ForetokenError
from foretoken.engines.transformers import loading
from foretoken.engines.transformers.loading import find_device, load_model, load_tokenizer
from helpers.shapes import LLAMA, VOCAB
from helpers.tokenizing import PIECES


@pytest.fixture
def folder(tmp_path, model_folder):
    return Path(shutil.copytree(model_folder, tmp_path / "folder"))


def edit(path: Path, **changes: object) -> None:
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(settings | changes))


def load(folder: Path, **options) -> foretoken.LanguageModel:
    return foretoken.load(str(folder), background=None, history=False, **options)


def refusal(act) -> str:
    with pytest.raises(ForetokenError) as error:
        act()
    said = str(error.value)
    assert "\n" not in said and said.isprintable()
    return said


# Whose code runs

BRINGS_CODE = {
    "config": ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}),
    "model": (
        "config.json",
        {"model_type": "llama4_vision_model", "auto_map": {"AutoModelForCausalLM": "own.Own"}},
    ),
    "tokenizer": (
        "tokenizer_config.json",
        {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}},
    ),
    # a part that is loaded by the model itself, without the caller's argument
    "part": (
        "config.json",
        {
            "model_type": "fuyu",
            "text_config": {"model_type": "blip_text_model", "auto_map": {"AutoModel": "FOLDER--own.Own"}},
        },
    ),
    "generate": ("custom_generate/generate.py", None),
}


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Whether code of the folder ran; what is asked on standard input is answered with yes."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    asked = []
    monkeypatch.setattr(builtins, "input", lambda *words: asked.append(words) or "y")
    mark = tmp_path / "ran"

    def ran() -> bool:
        assert not asked and sys.stdin.tell() == 0
        return mark.exists()

    yield ran
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def bring_code(folder: Path, part: str) -> None:
    file, changes = BRINGS_CODE[part]
    code = f"open({str(folder.parent / 'ran')!r}, 'w').close()\n"
    code += "from transformers import LlamaConfig\nclass Own(LlamaConfig):\n    model_type = 'own'\n"
    (folder / "own.py").write_text(code)
    if changes is None:
        (folder / file).parent.mkdir()
        (folder / file).write_text(code + "def generate(model, *args, **kwargs):\n    return None\n")
    else:
        edit(folder / file, **json.loads(json.dumps(changes).replace("FOLDER", str(folder))))


@pytest.mark.parametrize("part", [part for part in BRINGS_CODE if part != "generate"])
def test_code_that_a_folder_brings_does_not_run_and_nobody_is_asked(folder, ran, part):
    bring_code(folder, part)
    said = refusal(lambda: load(folder))
    assert not ran() and "trust_remote_code=True" in said


def test_a_generate_that_a_folder_brings_does_not_run(folder, ran):
    bring_code(folder, "generate")
    assert len(load(folder).generate("abc", max_new_tokens=3).tokens) == 3
    assert not ran()
    assert "its own generate" in refusal(lambda: load(folder, trust_remote_code=True))


def test_code_that_a_folder_brings_runs_where_the_caller_says_so(folder, ran):
    code = "from transformers import LlamaConfig, LlamaForCausalLM\n"
    code += f"open({str(folder.parent / 'ran')!r}, 'w').close()\n"
    code += "class Config(LlamaConfig):\n    model_type = 'own'\n"
    code += "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    (folder / "own.py").write_text(code)
    plain = load(folder).generate("abc", max_new_tokens=9)
    edit(
        folder / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    )
    assert load(folder, trust_remote_code=True).generate("abc", max_new_tokens=9).tokens == plain.tokens
    assert ran()


def test_pickled_weights_run_no_code(folder, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights | {"more": Hostile()}, folder / "pytorch_model.bin")
    assert "could not be loaded" in refusal(lambda: load(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("word", ["no", "False", 1, None])
def test_trust_is_true_or_false(folder, word):
    assert "trust_remote_code" in refusal(lambda: load(folder, trust_remote_code=word))


# Names


@pytest.mark.parametrize("name", ["banana", "", "cuda:99", "meta", 5, "cpu\0"])
def test_a_device_that_is_not_there_is_refused(name):
    said = refusal(lambda: find_device(name))
    assert said.startswith(f"The device {name!r} cannot be used")


def test_a_device_that_is_there_is_found():
    assert find_device("cpu") == torch.device("cpu") and find_device(None).type in ("cpu", "cuda")


@pytest.mark.parametrize("name", [5, None, ["x"]])
def test_a_name_that_is_no_name_is_refused(name):
    assert "hub name" in refusal(lambda: load_model(name))


def test_a_folder_may_be_given_as_a_path(folder):
    assert load_model(folder).num_parameters() > 0 and len(load_tokenizer(folder)) == VOCAB


# Damaged folders


def test_weights_that_are_not_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    lm = load(folder)
    for options in ({}, {"temperature": 1.0}, {"repetition_penalty": 1.2}, {"drafter": "none"}):
        assert "not numbers" in refusal(lambda options=options: lm.generate("abc", **options))


def test_a_tokenizer_of_more_tokens_than_the_model_has(folder):
    edit(folder / "config.json", vocab_size=3)
    weights = load_file(folder / "model.safetensors")
    few = {name: (w[:3].clone() if w.shape[0] == VOCAB else w) for name, w in weights.items()}
    save_file(few, folder / "model.safetensors", {"format": "pt"})
    lm = load(folder, drafter="none")
    assert len(lm.generate("abc", max_new_tokens=4).tokens) == 4  # tokens 0, 1 and 2
    assert "has token 25, and the model 3 tokens" in refusal(lambda: lm.generate("abz"))
    assert "has token 25, and the model 3 tokens" in refusal(lambda: lm.generate(["abc", "abz"]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 10**12}, "asks for 64,000,000,018,592 weights"),
        ({"head_dim": 10**8}, "weights, and its files hold"),
        ({"num_hidden_layers": 10**5}, "100000 layers"),
        ({"num_hidden_layers": 0}, "0 layers"),
        ({"num_hidden_layers": -1}, "-1 layers"),
        ({"model_type": "got_ocr2", "text_config": LLAMA | {"num_hidden_layers": 10**5}}, "100000 layers"),
        ({"vocab_size": VOCAB + 1}, "lm_head.weight is [61, 32], not [62, 32]"),
        ({"intermediate_size": 65}, "do not fit its config.json"),
        ({"model_type": "gpt2"}, "lack 28 tensors"),
        ({"model_type": "\x1b[2J"}, "?[2J"),
        ({"vocab_size": "x"}, "could not be read"),
        ({"quantization_config": 5}, "could not be read"),
    ],
)
def test_a_config_that_is_not_that_of_the_weights(folder, changes, said):
    edit(folder / "config.json", **changes)
    assert said in refusal(lambda: load_model(str(folder)))


DEEP = b'{"a": ' * 100_000 + b"1" + b"}" * 100_000


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", DEEP, b"\xff\xfe{}"], ids=range(6))
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_a_file_that_is_damaged(folder, name, content):
    (folder / name).write_bytes(content)
    refusal(lambda: load(folder))


@pytest.mark.parametrize("header", [2**40, 2**24], ids=["long", "beyond"])
def test_a_header_that_promises_too_much(folder, header):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", header) + whole[8:])
    assert "could not be loaded" in refusal(lambda: load(folder))


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize(
    "make", [lambda path: path.symlink_to(path.name), os.mkfifo, os.mkdir], ids=["loop", "pipe", "dir"]
)
def test_what_is_no_file(folder, name, make):
    (folder / name).unlink()
    make(folder / name)
    refusal(lambda: load(folder))


def test_an_adapter_is_no_model(folder):
    edit(folder / "adapter_config.json", base_model_name_or_path="elsewhere")
    (folder / "config.json").unlink()
    assert "holds an adapter" in refusal(lambda: load(folder))


def test_an_adapter_that_would_be_left_out_is_refused(folder, monkeypatch):
    monkeypatch.setattr(loading, "is_peft_available", lambda: False)
    edit(folder / "adapter_config.json", base_model_name_or_path="elsewhere")
    assert "holds an adapter" in refusal(lambda: load(folder))


# Generation configs and chat templates


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stop_strings": 5}, "stop_strings of the generation config is 5: give a string"),
        ({"stop_strings": ["a", 5]}, "which is no text: give each as a string"),
        ({"eos_token_id": "x"}, "eos_token_id = 'x': make it a token"),
        ({"eos_token_id": [1, None]}, "make it a token or a list of tokens"),
        ({"cache_implementation": "quantized"}, "cannot be used"),
        ({"top_k": "a"}, "top_k = 'a': make it a whole number"),
        ({"do_sample": "false"}, "make it true or false"),
        ({"do_sample": True, "temperature": -1.0}, "temperature"),
        ({"do_sample": True, "top_p": [1]}, "make it a number"),
        ({"max_length": 2.5}, "make it a whole number"),
        ({"max_time": "soon"}, "make it a number"),
        ({"bad_words_ids": [[3, 10**6]]}, "token 1000000 in bad_words_ids"),
        ({"sequence_bias": [[[10**6], -1.0]]}, "token 1000000 in sequence_bias"),
        ({"forced_eos_token_id": 10**6}, "token 1000000 in forced_eos_token_id"),
        ({"exponential_decay_length_penalty": [1]}, "cannot be used"),
    ],
)
def test_a_generation_config_of_wrong_types(folder, changes, said):
    edit(folder / "generation_config.json", **changes)
    assert said in refusal(lambda: load(folder, drafter="none").generate("abc", max_new_tokens=3))
    (folder / "generation_config.json").unlink()
    config = GenerationConfig(pad_token_id=0)
    for name, value in changes.items():
        setattr(config, name, value)
    assert said in refusal(lambda: load(folder, drafter="none").generate("abc", generation_config=config))


@pytest.mark.parametrize("bias", [[[[5], -10.0]], [[[5, 6], 2.5]], {(5,): -10.0}])
def test_a_bias_is_no_token(folder, bias):
    config = GenerationConfig(sequence_bias=bias, pad_token_id=0)
    assert load(folder, drafter="none").generate("abc", max_new_tokens=3, generation_config=config).tokens


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no \x1b[2J system') }}", "no ?[2J system"),
        ("{% if %}", "does not take these messages"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages[0]['content'] + 5 }}", "does not take these messages"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 'a' * 10**15 }}", "does not take these messages"),
        ("{{ '' }}", "empty"),
    ],
)
def test_a_chat_template_that_fails(folder, template, said):
    (folder / "chat_template.jinja").write_text(template)
    assert said in refusal(lambda: load(folder).generate([{"role": "user", "content": "abc"}]))


# Tokenizers


def save_tokenizer(folder: Path, model: models.Model, **special: str) -> None:
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special).save_pretrained(folder)


def test_a_vocabulary_need_not_know_the_letter_a(folder):
    save_tokenizer(folder, models.WordLevel({"?": 0, "be": 1, "to": 2}, unk_token="?"), unk_token="?")
    assert load_tokenizer(str(folder)).decode([1, 2]) == "be to"


def test_a_vocabulary_of_bytes(folder):
    save_tokenizer(folder, models.BPE({f"<0x{byte:02X}>": byte for byte in range(61)}, [], byte_fallback=True))
    assert load_tokenizer(str(folder))("\t\n")["input_ids"] == [9, 10]
    assert load(folder).generate("\t\n", max_new_tokens=3).tokens


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma", "gpt_neox", "qwen2", "t5", "bert"])
def test_a_tokenizer_that_transformers_makes_up_is_none(tmp_path, kind):
    edit(tmp_path / "config.json", model_type=kind)
    assert "no tokenizer that can be read" in refusal(lambda: load_tokenizer(str(tmp_path)))


def test_a_panic_of_the_tokenizer_is_a_sentence(folder):
    """What Rust raises is no Exception."""
    parts = json.loads((folder / "tokenizer.json").read_text())
    edit(folder / "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": ""})
    assert "no tokenizer that can be read" in refusal(lambda: load(folder))
    missing = {"single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}], "pair": [], "special_tokens": {}}
    (folder / "tokenizer.json").write_text(
        json.dumps(parts | {"post_processor": {"type": "TemplateProcessing"} | missing})
    )
    assert "cannot be made into tokens" in refusal(lambda: load(folder).generate("abc"))


def test_a_text_that_the_tokenizer_has_no_tokens_for(folder):
    save_tokenizer(folder, models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    lm = load(folder)
    assert "cannot be made into tokens" in refusal(lambda: lm.generate("nowhere"))
    assert "cannot be made into tokens" in refusal(lambda: lm.generate(PIECES[0], references=["nowhere"]))


# Processors without arithmetic for a dtype


@pytest.fixture
def told(monkeypatch, caplog):
    """Load in a dtype on a processor that has arithmetic for float32 alone; what is logged."""
    for query in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        monkeypatch.setattr(torch.ops.mkldnn, query, lambda: False, raising=False)
    loading._warn_of_slow.cache_clear()
    yield lambda: [record.getMessage() for record in caplog.records if record.name == "foretoken"]
    loading._warn_of_slow.cache_clear()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_without_arithmetic_is_told_once(folder, told, dtype):
    for _ in range(2):
        load_model(str(folder), dtype, "cpu")
    (line,) = told()
    assert dtype in line and 'dtype "float32"' in line and "\n" not in line


def test_a_dtype_with_arithmetic_is_nothing_to_tell(folder, told, monkeypatch):
    load_model(str(folder), "float32", "cpu")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    load_model(str(folder), "bfloat16", "cpu")
    assert told() == []


def test_the_line_is_plain_on_standard_error(folder, told, capsys):
    """Where nobody has set up logging."""
    loggers = [logging.getLogger(), logging.getLogger("foretoken")]
    before = [logger.handlers[:] for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers[:] = []
        load_model(str(folder), "bfloat16", "cpu")
    finally:
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
    assert capsys.readouterr().err.splitlines()[-1].startswith("This processor has no arithmetic for bfloat16: ")
