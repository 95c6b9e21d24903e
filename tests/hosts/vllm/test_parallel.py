"""A server of vLLM's with our drafter and several processes: two engines, or two ranks that share a model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

from foretoken.hosts.vllm.options import KEY
from foretoken.memory.history import History
from helpers.vllm_engine import SETTINGS, TINY

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
PROMPTS = [
    "def area(width, height):\n    return width * height\n\ndef volume(",
    "Once upon a time there was a little girl who",
    "1, 2, 3, 4, 5, 6, 7,",
    "x = 3\nprint(x * 2)\nx = 3\n",
] * 3
START = 540  # seconds: vLLM is imported in each of four processes
CONFIG = {"method": "custom_class", "model": "foretoken.hosts.vllm.Drafter", "num_speculative_tokens": 6}


def installed(folder: Path) -> Path:
    """What an installation leaves for vLLM to find the plugin by."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    about = folder / "foretoken_plugin-0.dist-info"
    about.mkdir(parents=True)
    lines = [f"[{group}]\n{name} = {where}\n" for group, some in declared.items() for name, where in some.items()]
    (about / "entry_points.txt").write_text("".join(lines), encoding="utf-8")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: foretoken-plugin\nVersion: 0\n", encoding="utf-8")
    return folder


class Served:
    """A server that runs."""

    def __init__(self, port: int, history: Path) -> None:
        self.port, self.history = port, history

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return str(answer.read().decode())

    def ask(self, prompt: str, **options: Any) -> str:
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        if options:
            body["vllm_xargs"] = {KEY: json.dumps(options)}
        url, kind = f"http://127.0.0.1:{self.port}/v1/completions", {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), kind)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return str(json.load(answer)["choices"][0]["text"])

    def ask_all(self, **options: Any) -> list[str]:
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            return list(pool.map(lambda prompt: self.ask(prompt, **options), PROMPTS))

    def counts(self, name: str) -> Counter[str]:
        """A counter of vLLM's by its engine."""
        found: Counter[str] = Counter()
        for line in self.get("/metrics").splitlines():
            if line.startswith(f"vllm:{name}_total{{"):
                found[line.split('engine="')[1].split('"')[0]] += int(float(line.rsplit(" ", 1)[1]))
        return found


@pytest.fixture(params=["data-parallel-size", "tensor-parallel-size"])
def served(request, tmp_path) -> Iterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    history = tmp_path / "history.sqlite"
    settings = {name: value for name, value in SETTINGS.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    settings["VLLM_CPU_OMP_THREADS_BIND"] = "0|1" if (os.cpu_count() or 1) > 1 else "nobind"
    path = os.pathsep.join([str(ROOT / "src"), str(installed(tmp_path / "installed"))])
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(TINY), "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    command += ["--max-num-seqs", "16", f"--{request.param}", "2", "--speculative-config", json.dumps(CONFIG)]
    command += ["--additional-config", json.dumps({KEY: {"history": str(history), "speculator": "auto"}})]
    log = tmp_path / "log.txt"
    with log.open("wb") as file:
        environment = {**os.environ, **settings, "PYTHONPATH": path}
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            yield ready(Served(port, history), server, log)
        finally:
            server.terminate()
            server.wait(60)


def ready(served: Served, server: subprocess.Popen[bytes], log: Path) -> Served:
    """The server, as soon as it answers."""
    for _ in range(START):
        assert server.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-3000:]
        try:
            served.get("/health")
        except OSError:
            time.sleep(1)
        else:
            return served
    raise AssertionError(log.read_text(encoding="utf-8", errors="replace")[-3000:])


def test_text_is_plain_text_options_count_and_answers_are_kept(served):
    plain = served.ask_all(draft=False)
    assert not served.counts("spec_decode_num_draft_tokens").total(), "nothing was drafted for these"
    assert served.ask_all() == plain
    assert served.ask_all(namespace="letters") == plain
    assert served.counts("spec_decode_num_accepted_tokens").total() > 0
    answered = served.counts("request_success")
    assert answered.total() == 3 * len(PROMPTS)
    with pytest.raises(urllib.error.HTTPError, match="400") as refused:
        served.ask(PROMPTS[0], limit=0)
    assert "limit in the request" in refused.value.read().decode()
    served.ask(PROMPTS[0], draft=False)  # with which the end of those before is told
    with History(served.history) as kept:
        rows = {row.namespace: row.answers for row in kept.stats()}
    assert rows == {"default": len(PROMPTS), "letters": len(PROMPTS)}
