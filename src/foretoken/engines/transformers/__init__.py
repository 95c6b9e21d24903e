"""Driven: our loop over the decoder-only models of Hugging Face transformers."""

from __future__ import annotations

from foretoken.engines.transformers.target import TransformersTarget

__all__ = ["TransformersTarget"]
