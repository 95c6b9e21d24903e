"""A base model of 60,000 parameters with the tokenizer of the bundled one, and some text."""

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from foretoken.engines.transformers.loading import TINY
from foretoken.memory.fingerprint import fingerprint
from foretoken.tokenizing import batch_encoder, load_tokenizer
from foretoken.training.base import FrozenBase
from foretoken.training.tokens import TokenStream


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def base(base_folder):
    return FrozenBase(str(base_folder), "float32", "cpu")


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    stdlib = Path(sysconfig.get_path("stdlib"))
    path.write_text("".join((stdlib / name).read_text() for name in ("argparse.py", "datetime.py", "typing.py")))
    return path


@pytest.fixture(scope="session")
def stream(tmp_path_factory, text):
    tokenizer = load_tokenizer("tiny")
    folder = tmp_path_factory.mktemp("tokens")
    return TokenStream(folder, [text], batch_encoder(tokenizer), fingerprint(tokenizer), 0)
