"""What people install: the wheel by itself, and a source distribution that can be tested."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def run(*words: object, **options: Any) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_alone_generates(distributions, tmp_path):
    """In an environment with the dependencies that these tests have, and no source tree."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    paths = sysconfig.get_paths(scheme="venv", vars={"base": str(environment), "platbase": str(environment)})
    python = next(Path(paths["scripts"]).glob("python*"))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", distributions[1])
    # Dependencies come from this environment; an editable Foretoken does not, since .pth files there are not read.
    (Path(paths["purelib"]) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    code = "import foretoken; print(foretoken.__file__); print(foretoken.generate.__module__)"
    assert str(environment) in run(python, "-c", code, cwd=tmp_path, env=clean)
    prompt = "def area(width, height):"
    command = [Path(paths["scripts"]) / "foretoken", "generate", "--prompt", prompt, "--temperature", "0"]
    command += ["--max-new-tokens", "12", "--dtype", "float32"]
    drafted = run(*command, cwd=tmp_path, env=clean)
    assert drafted.strip()
    assert drafted == run(*command, "--drafter", "none", cwd=tmp_path, env=clean)


@pytest.mark.slow
def test_the_source_distribution_can_be_tested(distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    tracked = run("git", "ls-files", cwd=ROOT).split("\n") if (ROOT / ".git").exists() else []
    needed = {"README.md", "LICENSE", "pyproject.toml", "mkdocs.yml", "requirements/constraints.txt", "docs/index.md"}
    needed |= {name for name in tracked if name.startswith(("src/", "tests/", "examples/", "scripts/", "benchmarks/"))}
    assert not needed - names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("build/", ".venv/"))]
