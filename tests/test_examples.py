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


def test_the_blocks_of_the_page_on_drafters_run(tmp_path):
    """In order, each in a file of its own beside the ones before, as the page tells its reader; in one process."""
    page = (EXAMPLES.parent / "docs" / "add-a-drafter.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    assert len(blocks) >= 3
    (tmp_path / "last_seen.py").write_text(blocks[0], encoding="utf-8")
    paths = [tmp_path / f"block_{number}.py" for number in range(1, len(blocks))]
    for path, block in zip(paths, blocks[1:], strict=True):
        path.write_text(block, encoding="utf-8")
    code = "import runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path, run_name='__main__')"
    subprocess.run([sys.executable, "-c", code, *paths], check=True, cwd=tmp_path, capture_output=True)
