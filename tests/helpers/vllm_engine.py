"""vLLM engines in the process of the tests: the first takes a minute, a further one some seconds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import foretoken
from foretoken.hosts.vllm.rebinding import allow_numba

TINY = Path(foretoken.__file__).parent / "models" / "tiny"
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)

vllm = pytest.importorskip("vllm", reason="vLLM is not installed in this environment")


def engine(speculative: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """An ``LLM`` with the bundled model in float32.

    Args:
        speculative: Its ``speculative_config``.
        options: Others of its arguments.
    """
    allow_numba()
    settings = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 16, "enforce_eager": True, "seed": 0}
    settings["kv_cache_memory_bytes"] = 1 << 27  # several engines live at a time, and a gigabyte of each is too much
    speculative = None if speculative is None else dict(speculative)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)  # which would win
        return vllm.LLM(str(TINY), speculative_config=speculative, **{**settings, **options})


def worker_of(llm: Any) -> Any:
    """The worker of an engine in this process."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
