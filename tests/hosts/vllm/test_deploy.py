"""What the pages and files say to vLLM is JSON with options that there are, and names of ours that can be found."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from foretoken.hosts.vllm.options import KEY, EngineOptions, RequestOptions

DOCS = Path(__file__).parents[3] / "docs"
FILES = [*DOCS.rglob("*.md"), *DOCS.rglob("*.yaml")]


def said(option: str) -> list[dict]:
    """The JSON after an option, wherever it is in the documentation."""
    found = [re.findall(rf"--{option}[= ](?:'([^']*)'|(\{{.*\}}))", file.read_text("utf-8")) for file in FILES]
    return [json.loads(quoted or bare) for matches in found for quoted, bare in matches if "..." not in quoted]


def test_speculative_configs_name_modules_that_there_are():
    configs = said("speculative-config")
    assert len(configs) >= 4
    for config in configs:
        package, name = config["model"].rsplit(".", 1)
        assert find_spec(package) is not None
        assert name in ("Drafter", "ForetokenSpeculator")
        assert config["num_speculative_tokens"] == 8


def test_options_of_engines_and_requests_are_read():
    for config in said("additional-config"):
        assert EngineOptions.read(config) != EngineOptions()
    page = (DOCS / "deploy" / "vllm.md").read_text("utf-8")
    body = json.loads(re.search(r"-d '(\{.*?\})'", page, re.DOTALL)[1])
    assert RequestOptions.read(body["vllm_xargs"]).namespace == "letters"
    for kind in (EngineOptions, RequestOptions):
        for name in kind.__dataclass_fields__:
            assert f"| `{name}` |" in page
    assert KEY in body["vllm_xargs"]


def test_the_replicas_of_kubernetes_have_a_volume_each_for_their_history():
    parts = list(yaml.safe_load_all((DOCS / "deploy" / "kubernetes.yaml").read_text("utf-8")))
    replicas = parts[-1]
    assert replicas["kind"] == "StatefulSet" and replicas["spec"]["replicas"] > 1
    vllm = replicas["spec"]["template"]["spec"]["containers"][0]
    options = next(word for word in vllm["args"] if word.startswith("--additional-config="))
    history = Path(EngineOptions.read(json.loads(options.partition("=")[2])).history)
    mounts = {mount["mountPath"]: mount["name"] for mount in vllm["volumeMounts"]}
    claims = [claim["metadata"]["name"] for claim in replicas["spec"]["volumeClaimTemplates"]]
    assert mounts[str(history.parent)] in claims
    names = {part["metadata"]["name"] for part in parts if part["kind"] == "Service"}
    assert replicas["spec"]["serviceName"] in names


@pytest.mark.parametrize("name", ["vllm.md", "kubernetes.yaml", "vllm.Dockerfile"])
def test_the_page_names_the_files(name):
    assert (DOCS / "deploy" / name).exists()
    assert name in (DOCS / "deploy" / "index.md").read_text("utf-8") + (DOCS / "deploy" / "vllm.md").read_text("utf-8")
