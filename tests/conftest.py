"""Fixtures and options that several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

from shapes import tiny_model
from tokenizing import character_tokenizer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data", type=Path, help="recorded answers: a folder with traces/ and tokenizers/")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its tokenizer on disk, as people have them."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder
