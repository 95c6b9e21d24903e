"""Fixtures and options that several folders share."""

from __future__ import annotations

import gc
import multiprocessing as mp
import signal
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from helpers.shapes import tiny_model
from helpers.tokenizing import character_tokenizer

pytest_plugins = ["helpers.jobs"]

settings.register_profile("the same every time", derandomize=True)
settings.load_profile("the same every time")
# Threads gain nothing on models this small, and wait long for each other where the cores are busy with something else.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data", type=Path, help="recorded answers: a folder with traces/ and tokenizers/")
    parser.addoption("--models", type=Path, help="small pretrained models, a folder each: stories260K, bitllama2_3M ..")


def pytest_collection_finish() -> None:
    """The modules of torch and transformers stay: the collector need not look through them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def home_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Answers and corpora are kept in folders of the tests, never in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")  # in the processes that tests start
        yield


@pytest.fixture(scope="session", autouse=True)
def arithmetic_for_every_dtype() -> Iterator[None]:
    """What is said of a processor without it must not depend on where the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        for query in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
            patch.setattr(torch.ops.mkldnn, query, lambda: True, raising=False)
        yield


@pytest.fixture(scope="session")
def server() -> ForkServerContext:
    """Forks processes with torch and transformers already imported.

    There is one server in a process, and what it imports is settled when it starts.
    """
    context = mp.get_context("forkserver")
    engines = ["foretoken.engines.parallel", "foretoken.engines.transformers.engine"]
    context.set_forkserver_preload([*engines, "hypothesis", "pytest"])
    return context


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its tokenizer on disk, as people have them."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell's background jobs ignore interrupts and hand that down: not these tests, whoever runs them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
