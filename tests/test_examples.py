"""The examples run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("name", ["minimal.py", "three_doors.py"])
def test_an_example_runs(name):
    run = subprocess.run([sys.executable, EXAMPLES / name], check=True, capture_output=True, text=True)
    assert "step" in run.stdout
