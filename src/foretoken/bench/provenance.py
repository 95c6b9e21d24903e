"""Where a speed comes from: the code and the machine, the workload, the model's libraries."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any

import torch

from foretoken.replay.provenance import code_and_machine


def provenance(workload: str, seed: int) -> dict[str, Any]:
    """What somebody needs to measure the same again."""
    return {
        **code_and_machine(),
        "workload_sha256": hashlib.sha256(workload.encode()).hexdigest(),
        "seed": seed,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
