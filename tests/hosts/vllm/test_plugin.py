"""The plugin: no engine notices it that does not ask for our drafter. vLLM itself is a stand-in here."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from foretoken.core.errors import ForetokenError, ModelError, RequestError
from foretoken.hosts.vllm import plugin
from foretoken.hosts.vllm.options import KEY

SPECULATOR = "foretoken.hosts.vllm.model_runner_v2.ForetokenSpeculator"
CPU_WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"


@pytest.fixture
def vllm(monkeypatch):
    """A vLLM of the tested version that has nothing but its version; the fixture sets another one."""

    def have(version):
        module = ModuleType("vllm")
        module.__dict__["__version__"] = version
        monkeypatch.setitem(sys.modules, "vllm", module)

    have("0.32.0")
    return have


def config(method="custom_class", model=plugin.DRAFTER, worker=CPU_WORKER, tokens=8, newer=False, **options):
    return SimpleNamespace(
        use_v2_model_runner=newer,
        speculative_config=SimpleNamespace(method=method, model=model, num_speculative_tokens=tokens),
        parallel_config=SimpleNamespace(worker_cls=worker),
        model_config=SimpleNamespace(max_model_len=512),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        additional_config=options,
    )


def test_neither_numba_nor_a_drafter_is_imported_and_nothing_breaks_without_vllm():
    code = """
import sys
from foretoken.hosts.vllm import plugin
plugin.register()
plugin.register()
print(*(name for name in sys.modules if name.startswith(("numba", "llvmlite", "torch", "foretoken.drafters"))))
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert printed.stdout == "\n"
    assert printed.stderr == ""


def test_the_entry_point_is_the_plugin():
    declared = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    name = declared["project"]["entry-points"]["vllm.general_plugins"]["foretoken"]
    assert pkgutil.resolve_name(name) is plugin.register


def test_an_unknown_vllm_is_left_alone(vllm):
    plugin.register()


@pytest.mark.parametrize("model", ["ngram", None, "someone.elses.Drafter", "foretoken.hosts.vllmish.Drafter"])
def test_an_engine_that_does_not_ask_stays_as_it_is(vllm, model):
    vllm("99.0")
    other = config("ngram" if model == "ngram" else "custom_class", model)
    before = repr(other)
    plugin.prepare(other)
    plugin.prepare(SimpleNamespace(speculative_config=None, additional_config={}))
    assert repr(other) == before


def test_an_engine_that_asks_gets_our_worker(vllm):
    asks = config()
    plugin.prepare(asks)
    assert asks.parallel_config.worker_cls == "foretoken.hosts.vllm.worker.CPUWorker"
    assert asks.speculative_config.model == plugin.INFORMED_DRAFTER
    plugin.prepare(asks)  # again, as where a config is made of another
    assert asks.parallel_config.worker_cls == "foretoken.hosts.vllm.worker.CPUWorker"


def test_a_worker_of_somebody_elses_stays_and_its_requests_have_no_options(vllm):
    asks = config(worker="their.Worker")
    plugin.prepare(asks)
    assert asks.parallel_config.worker_cls == "their.Worker"
    assert asks.speculative_config.model == plugin.DRAFTER
    plugin.check_request({"other": 1}, asks.speculative_config)
    with pytest.raises(RequestError, match="leave them out"):
        plugin.check_request({KEY: {"draft": False}}, asks.speculative_config)


@pytest.mark.parametrize("version", ["0.31.1", "0.33.0", "1.0.0", "dev"])
def test_another_version_is_refused_in_one_sentence_by_engines_that_ask(vllm, version):
    vllm(version)
    with pytest.raises(ModelError, match=version):
        plugin.prepare(config())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (config(foretoken={"heads": 1}), "heads"),
        (config("ngram", "ngram", foretoken={}), "does not ask"),
        (config(tokens=129), "128"),
        (config("ngram", SPECULATOR), "newer runner"),
        (config("ngram", SPECULATOR, "their.Worker", newer=True), "its own worker"),
    ],
)
def test_a_wrong_config_is_refused(vllm, wrong, says):
    with pytest.raises(ForetokenError, match=says):
        plugin.prepare(wrong)


def test_a_requests_options_are_checked_where_our_worker_runs(vllm):
    asks = config()
    plugin.prepare(asks)
    plugin.check_request({KEY: '{"limit": 2}'}, asks.speculative_config)
    with pytest.raises(RequestError, match="limit"):
        plugin.check_request({KEY: {"limit": -1}}, asks.speculative_config)
    with pytest.raises(RequestError, match="leave them out"):
        plugin.check_request({KEY: {"limit": 1}}, None)


def test_the_newer_runners_speculator_is_ours_for_who_asks_by_either_name(vllm, monkeypatch):
    """The name that the runner imported before counts, and so does the one that it will import."""
    theirs = lambda *arguments: ("theirs", *arguments)  # noqa: E731
    for name in ("vllm.v1", "vllm.v1.worker", "vllm.v1.worker.gpu"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name in ("vllm.v1.worker.gpu.spec_decode", "vllm.v1.worker.gpu.model_runner"):
        module = ModuleType(name)
        module.__dict__["init_speculator"] = theirs
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, attribute = name.rpartition(".")
        monkeypatch.setattr(sys.modules[parent], attribute, module, raising=False)
    ours = ModuleType("foretoken.hosts.vllm.model_runner_v2")
    ours.__dict__["ForetokenSpeculator"] = lambda *arguments: ("ours", *arguments)
    monkeypatch.setitem(sys.modules, ours.__name__, ours)
    plugin.register()
    plugin.register()
    asks = config("ngram", SPECULATOR, "vllm.v1.worker.gpu_worker.Worker", newer=True)
    plugin.prepare(asks)
    assert asks.parallel_config.worker_cls == "foretoken.hosts.vllm.worker.GPUWorker"
    plugin.check_request({KEY: {"limit": 1}}, asks.speculative_config)
    for name in ("spec_decode", "model_runner"):
        init = sys.modules[f"vllm.v1.worker.gpu.{name}"].__dict__["init_speculator"]
        assert init(asks, "device", "states") == ("ours", asks, "device", "states")
        other = config("ngram", "ngram")
        assert init(other, "device", "states") == ("theirs", other, "device", "states")
