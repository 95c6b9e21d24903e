"""The correction of vLLM's CPU sampler, which gives drafted tokens a temperature that nobody asked for.

The sampler repeats each request's temperature, top_k and top_p for each of its drafted tokens. On a CPU the kernel that
does so writes into a copy and throws it away, and the sampler reads uninitialised memory: sampled text then follows
another distribution (https://github.com/vllm-project/vllm/issues/55005). Greedy text is not touched by it.

``correct_sampling`` asks vLLM's own function for known answers. Only where one is wrong is it replaced.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

SWITCH = "FORETOKEN_VLLM_SAMPLING_FIX"
"""The environment variable that turns the correction off, if it is 0."""

SAMPLER = "vllm.v1.sample.rejection_sampler"
TRIALS = 8  # memory that holds the right answers of all of them by chance is out of the question
logger = logging.getLogger("foretoken")


class Expand(Protocol):
    """Repeats a setting of each request for each of its tokens."""

    def __call__(
        self, x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
    ) -> Tensor: ...


def correct_sampling() -> bool:
    """Replace the function of this process's vLLM, if it is wrong and the correction is not turned off.

    To be called once the worker's kernels are in place, such as when its model is loaded.

    Returns:
        Whether it was replaced.
    """
    import vllm.v1.sample.rejection_sampler as sampler

    if expands(sampler.expand_batch_to_tokens):
        return False
    if os.environ.get(SWITCH) == "0":
        logger.warning(
            "This vLLM reads uninitialised memory as the temperature, top_k and top_p of drafted tokens (vLLM issue "
            "55005), and %s=0 leaves that as it is: sampled text is wrong. Greedy text is right.",
            SWITCH,
        )
        return False
    sampler.expand_batch_to_tokens = expand_batch_to_tokens
    logger.warning(
        "This vLLM reads uninitialised memory as the temperature, top_k and top_p of drafted tokens (vLLM issue "
        "55005). Foretoken has replaced %s.expand_batch_to_tokens in this process; %s=0 leaves it as it was.",
        SAMPLER,
        SWITCH,
    )
    return True


def expand_batch_to_tokens(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """A setting of each request, once for each of its tokens, as vLLM's function of this name should give it.

    Args:
        x: [batch], the setting.
        cu_num_tokens: int [batch], how many tokens there are up to and including each request's.
        num_tokens: How many there are in all.
        replace_from: A value that is replaced, such as a greedy request's temperature.
        replace_to: By this.

    Returns:
        [num_tokens].
    """
    import torch

    ends = cu_num_tokens.long()
    x = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return torch.repeat_interleave(x, ends.diff(prepend=ends.new_zeros(1)), output_size=num_tokens)


def expands(expand: Expand) -> bool:
    """Whether a function does what ``expand_batch_to_tokens`` does, on inputs whose answers memory cannot hold."""
    import torch

    random = torch.Generator().manual_seed(55005)
    for _ in range(TRIALS):
        counts = torch.randint(0, 5, (6,), generator=random)
        counts[0] = 3  # one at least has tokens
        ends, total = counts.cumsum(0), int(counts.sum())
        for dtype in (torch.float32, torch.int32):
            x = (torch.rand(6, generator=random) * 1e6 + 0.5).to(dtype)
            x[0] = 0
            wanted = expand_batch_to_tokens(x, ends, total, 0, 1)
            if not torch.equal(expand(x, ends.int(), total, 0, 1), wanted):
                return False
    return True
