"""A server on the toy engine, in this process, on a free port of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from foretoken import LanguageModel, load

if TYPE_CHECKING:
    import httpx2 as httpx


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    return load("toy", background=None)


@pytest.fixture(scope="module")
def client(lm: LanguageModel) -> Iterator[httpx.Client]:
    from helpers.serving import serving

    with serving(lm) as client:
        yield client
