"""What vLLM needs of the tests beside it."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def arithmetic_for_every_dtype() -> None:
    """Not here: while it is imported vLLM goes through all operations of torch, and trips over one that is replaced."""
