"""Hosted: vLLM runs the model and verifies; it asks ``Drafter`` for drafts.

``speculative_config={"method": "custom_class", "model": "foretoken.hosts.vllm.Drafter", "num_speculative_tokens": 8}``
"""

from __future__ import annotations

from typing import Any

__all__ = ["Drafter"]


def __getattr__(name: str) -> Any:
    """Import the drafter when vLLM asks for it: vLLM must have started before numba is imported."""
    if name == "Drafter":
        from foretoken.hosts.vllm.drafter import Drafter

        return Drafter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
