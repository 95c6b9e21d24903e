"""What the package promises of itself: its names, and an import that costs nothing."""

from __future__ import annotations

import subprocess
import sys

import foretoken


def test_every_public_name_is_there_and_listed():
    assert foretoken.__all__ == sorted(foretoken.__all__)
    for name in foretoken.__all__:
        assert getattr(foretoken, name) is not None


def test_importing_brings_in_no_engine_and_is_quick():
    code = (
        "import sys, time; start = time.perf_counter(); import foretoken; seconds = time.perf_counter() - start; "
        "heavy = {'torch', 'transformers', 'numpy', 'typer', 'rich'} & set(sys.modules); "
        "print(seconds); sys.exit(f'{heavy} imported' if heavy else 0)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.2
