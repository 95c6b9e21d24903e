"""The door to lookahead parallelism. What two processes answer is tested with the command and with the engine."""

from __future__ import annotations

import pytest

import foretoken
from foretoken.api.parallel import ParallelModel, load_parallel
from foretoken.core.errors import RequestError
from helpers.ranks import meeting


@pytest.fixture
def group_of_one(monkeypatch):
    for name, value in meeting(1)[0].items():
        monkeypatch.setenv(name, value)


def text_of(parallel: ParallelModel, **options: object) -> str:
    stream = parallel.stream("abc abc", max_new_tokens=24, **options)  # type: ignore[arg-type]
    return "".join(chunk.text for chunk in stream)


def test_the_text_is_that_of_plain_decoding(group_of_one, model_folder):
    plain = foretoken.load(str(model_folder), drafter="none", background=None, history=False)
    with load_parallel(str(model_folder), device="cpu") as parallel:
        assert parallel.rank == 0
        for options in ({}, {"temperature": 0.9, "seed": 3}):
            assert text_of(parallel, **options) == plain.generate("abc abc", max_new_tokens=24, **options).text
        for option in ("drafter", "references", "namespace"):
            with pytest.raises(RequestError, match=f"leave out {option}"):
                text_of(parallel, **{option: "x"})


def test_it_needs_a_group(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(foretoken.ForetokenError, match="start them with torchrun"), load_parallel():
        pass
