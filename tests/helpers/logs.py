"""Logs and a tokenizer for them, as files: one token a letter."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ:\n0123456789"


def write_tokenizer(path: Path) -> Path:
    """A tokenizer.json that splits a text into its letters and drops what it does not know."""
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(LETTERS)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.enable_padding(length=8)  # what somebody left in it must not be heeded
    tokenizer.save(str(path))
    return path


def write_log(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def repetitive(seed: int, length: int) -> str:
    """Words that come again, so that guesses are sometimes right."""
    rng = random.Random(seed)
    words = ["one ", "two ", "three ", "four and five ", "six "]
    text = ""
    while len(text) < length:
        text += rng.choice(words)
    return text[:length]


def rows(count: int, length: int = 120) -> list[dict[str, Any]]:
    return [
        {"prompt": repetitive(i, 80), "output": repetitive(1000 + i, length), "task": f"kind {i % 2}"}
        for i in range(count)
    ]
