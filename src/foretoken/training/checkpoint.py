"""The state of a training, replaced as a whole, so that a run that is killed goes on bit for bit."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from foretoken.core.errors import ForetokenError
from foretoken.files import writing


def save(path: Path, state: dict[str, Any]) -> None:
    """Put a checkpoint in the place of the one before.

    Raises:
        ForetokenError: If it cannot be written; the one before stays.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with writing(path, folders=True) as file:
        file.write(buffer.getbuffer())


def load(path: Path) -> dict[str, Any] | None:
    """The last checkpoint. None if there is none.

    Raises:
        ForetokenError: If it is damaged.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ForetokenError(f"The checkpoint {str(path)!r} is damaged: delete it to begin again.") from error
    return state
