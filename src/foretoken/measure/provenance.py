"""Where a model's speed comes from: the code, the machine, the model's libraries and the workload."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any

import torch

from foretoken.provenance import code_and_machine


def of_model(workload: str, seed: int) -> dict[str, Any]:
    """What is needed to repeat a measurement: the workload, the model's libraries, the device."""
    return {
        **code_and_machine(),
        "workload_sha256": hashlib.sha256(workload.encode()).hexdigest(),
        "seed": seed,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
