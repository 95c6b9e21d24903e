"""What the package promises of itself: its names, and an import that costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import foretoken


def test_every_public_name_is_there_and_listed():
    assert foretoken.__all__ == sorted(foretoken.__all__)
    for name in foretoken.__all__:
        assert getattr(foretoken, name) is not None


def test_importing_brings_in_the_core_and_the_standard_library_alone():
    code = "import sys; before = set(sys.modules); import foretoken; print(*(set(sys.modules) - before))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    others = {name for name in printed.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert "foretoken" in others
    assert {name for name in others if not f"{name}.".startswith("foretoken.core.")} == {
        "foretoken",
        "foretoken.version",
    }


@pytest.mark.parametrize(("drafter", "compiles"), [("prompt-lookup", False), ("none", False), ("ngram", True)])
def test_numba_is_imported_for_drafters_that_run_compiled_loops_alone(drafter, compiles):
    code = f"""
import sys, foretoken
lm = foretoken.load("toy", drafter={drafter!r}, background=None)
lm.generate("abc abc abc", max_new_tokens=8)
print("numba" in sys.modules, {{"torch", "transformers"}} & sys.modules.keys())
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == f"{compiles} set()\n"
