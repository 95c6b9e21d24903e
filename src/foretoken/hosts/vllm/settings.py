"""What vLLM's configuration says that concerns drafting, and what is refused of it."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from typing import Any

from foretoken.core.errors import ModelError

TESTED = ("0.32",)  # versions of vLLM, their first two numbers
MAX_DRAFT = 128  # tokens that vLLM's rejection sampler takes, its MAX_SPEC_LEN


@dataclass(frozen=True)
class Settings:
    """What the drafter goes by.

    Args:
        max_draft: The most tokens of a draft, vLLM's ``num_speculative_tokens``.
        max_length: The most tokens of prompt and answer.
        max_requests: The most requests of a step.
        is_one_thread: Whether one thread of a CPU does all. Its processor time then tells what steps take, which
            other programs do not disturb.
    """

    max_draft: int
    max_length: int
    max_requests: int
    is_one_thread: bool = False

    @classmethod
    def of(cls, vllm_config: Any) -> Settings:
        """Read them.

        Raises:
            ForetokenError: If this vLLM is none that was tested, or the number of tokens is none that it verifies.
        """
        check_version()
        max_length = int(vllm_config.model_config.max_model_len)
        max_draft = vllm_config.speculative_config.num_speculative_tokens
        most = min(MAX_DRAFT, max_length - 1)
        if type(max_draft) is not int or not 1 <= max_draft <= most:
            raise ModelError(
                f"num_speculative_tokens is {max_draft}: give a whole number from 1 to {most}, such as 8, of which the "
                "budget uses as many as pay."
            )
        max_requests = int(vllm_config.scheduler_config.max_num_seqs)
        return cls(max_draft, max_length, max_requests, _is_one_thread(vllm_config))


def _is_one_thread(vllm_config: Any) -> bool:
    device, parallel = getattr(vllm_config, "device_config", None), getattr(vllm_config, "parallel_config", None)
    if getattr(device, "device_type", None) != "cpu" or getattr(parallel, "world_size", 1) > 1:
        return False
    import torch

    return torch.get_num_threads() == 1


def let_ask_to_the_end(vllm_config: Any) -> None:
    """Have vLLM ask the drafter however long a text is.

    It takes a drafter to read no more than the model does. Once one request could outgrow that with its next draft, no
    request is drafted for: all get zeros, and these are verified. Our drafter reads everything, and gives each request
    no more than there is room for.
    """
    speculative = vllm_config.speculative_config
    reads = copy.copy(vllm_config.model_config)
    reads.max_model_len += speculative.num_speculative_tokens
    speculative.draft_model_config = reads


def check_version() -> None:
    """Refuse a vLLM whose inner parts may be others than those that this was written for.

    Raises:
        ForetokenError: If it is none that was tested.
    """
    version = getattr(sys.modules.get("vllm"), "__version__", None)
    if version is None:  # nobody hosts the drafter: a test or a benchmark asks it
        return
    if ".".join(version.split(".")[:2]) not in TESTED:
        raise ModelError(
            f"This is vLLM {version}, and Foretoken was tested with {' and '.join(TESTED)} only: install "
            f"vllm=={TESTED[-1]}.0, or a version of Foretoken that names yours."
        )
