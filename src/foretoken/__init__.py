"""Foretoken: speculative decoding with the same text, for the language model that you already run."""

from __future__ import annotations

from foretoken.version import __version__ as __version__

TYPE_CHECKING = False  # as type checkers read it, without the time that the module typing takes
if TYPE_CHECKING:
    from typing import Any

    from foretoken.api.answer import Chunk, Result, Stream
    from foretoken.api.language_model import LanguageModel, load
    from foretoken.api.options import Options
    from foretoken.core.budget import AdaptiveBudget, Budget, FixedBudget
    from foretoken.core.contracts import Drafter, Scores, Step, Target, Verdict
    from foretoken.core.decode import decode
    from foretoken.core.draft import Draft
    from foretoken.core.errors import ForetokenError, ModelError, RequestError
    from foretoken.core.sampling import Sampling
    from foretoken.core.stats import DecodeStats
    from foretoken.core.verify import verify_match
    from foretoken.engines.transformers.hook import generate

__all__ = [
    "AdaptiveBudget",
    "Budget",
    "Chunk",
    "DecodeStats",
    "Draft",
    "Drafter",
    "FixedBudget",
    "ForetokenError",
    "LanguageModel",
    "ModelError",
    "Options",
    "RequestError",
    "Result",
    "Sampling",
    "Scores",
    "Step",
    "Stream",
    "Target",
    "Verdict",
    "decode",
    "generate",
    "load",
    "verify_match",
]

# Where each name is. It is imported when it is first asked for, so that ``import foretoken`` takes no time.
_LAZY = {
    "AdaptiveBudget": "foretoken.core.budget",
    "Budget": "foretoken.core.budget",
    "FixedBudget": "foretoken.core.budget",
    "Drafter": "foretoken.core.contracts",
    "Scores": "foretoken.core.contracts",
    "Step": "foretoken.core.contracts",
    "Target": "foretoken.core.contracts",
    "Verdict": "foretoken.core.contracts",
    "decode": "foretoken.core.decode",
    "Draft": "foretoken.core.draft",
    "ForetokenError": "foretoken.core.errors",
    "ModelError": "foretoken.core.errors",
    "RequestError": "foretoken.core.errors",
    "Sampling": "foretoken.core.sampling",
    "DecodeStats": "foretoken.core.stats",
    "verify_match": "foretoken.core.verify",
    "Chunk": "foretoken.api.answer",
    "LanguageModel": "foretoken.api.language_model",
    "Result": "foretoken.api.answer",
    "Stream": "foretoken.api.answer",
    "Options": "foretoken.api.options",
    "load": "foretoken.api.language_model",
    "generate": "foretoken.engines.transformers.hook",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'foretoken' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        from foretoken.core.errors import ForetokenError

        raise ForetokenError(f"foretoken.{name} needs {error.name}: pip install 'foretoken[transformers]'.") from error


def __dir__() -> list[str]:
    return __all__
