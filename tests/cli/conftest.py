"""What the tests of several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from foretoken.engines.transformers import engine, loading


@pytest.fixture(scope="session")
def loaders() -> dict[str, Callable[..., Any]]:
    """Each model and each tokenizer is loaded once, since the commands of these tests share a process."""
    return {name: cache(getattr(loading, name)) for name in ("load_model", "load_tokenizer")}


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch, loaders: dict[str, Callable[..., Any]]) -> None:
    for name, load in loaders.items():
        for module in (engine, loading):
            monkeypatch.setattr(module, name, load)
