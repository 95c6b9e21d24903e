"""The user's folders: one for data that is to be kept, one for what can be made again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def data_folder() -> Path:
    """The folder for what is to be kept, such as the history; it need not exist, and the path is absolute."""
    return _folder("XDG_DATA_HOME", ".local/share")


def cache_folder() -> Path:
    """The folder for what can be made again; it need not exist, and the path is absolute."""
    return _folder("XDG_CACHE_HOME", ".cache")


def _folder(variable: str, within_home: str) -> Path:
    if sys.platform == "win32":
        variable, within_home = "LOCALAPPDATA", "AppData/Local"
    base = Path(os.environ.get(variable, ""))
    if not base.is_absolute():  # to be ignored, says the XDG specification
        base = _home() / within_home
    return base / "foretoken"


def _home() -> Path:
    try:
        home = Path.home()
    except RuntimeError:  # a user whom the system does not know, as in some containers
        home = Path(os.sep)
    return home if home.is_absolute() else Path(os.sep)
