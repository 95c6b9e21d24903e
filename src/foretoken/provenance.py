"""Where a number comes from: the commit, the version, the machine."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from foretoken.version import __version__


def code_and_machine() -> dict[str, Any]:
    """What code ran on what machine."""
    return {
        "foretoken": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
    }


def _commit() -> str | None:
    """The commit of the checkout that this file lies in, with a plus where it has been changed."""
    here = Path(__file__).parent
    try:
        commit = subprocess.check_output(["git", "-C", here, "rev-parse", "--short", "HEAD"], text=True, stderr=-3)
        changed = subprocess.check_output(["git", "-C", here, "status", "--porcelain", "-uno"], text=True, stderr=-3)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("+" if changed.strip() else "")


@cache
def processor() -> str:
    """The processor's name, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
