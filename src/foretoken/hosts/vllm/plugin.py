"""What vLLM loads in each of its processes, by the entry point ``vllm.general_plugins`` of this package.

It makes three places of vLLM look for engines that ask for our drafter, and leaves all others as they are:

- an engine's config, which is checked, and gets our worker;
- a request's options in ``extra_args``, of which wrong ones are refused;
- the speculator of the newer model runner.

vLLM loads plugins before it replaces its kernels in a process, and that does not get on with numba. So neither this
module nor what it imports may import numba.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

from foretoken.core.errors import RequestError
from foretoken.hosts.vllm.options import KEY, EngineOptions, RequestOptions
from foretoken.hosts.vllm.settings import Settings

PACKAGE = "foretoken.hosts.vllm"
DRAFTER = f"{PACKAGE}.Drafter"
INFORMED_DRAFTER = f"{PACKAGE}.worker.InformedDrafter"
WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": f"{PACKAGE}.worker.CPUWorker",
    "vllm.v1.worker.gpu_worker.Worker": f"{PACKAGE}.worker.GPUWorker",
}
MARK = "_foretoken_wraps"  # on a function of ours, which stands for one of vLLM's
logger = logging.getLogger("foretoken")


def register() -> None:
    """Put our hooks in. vLLM calls it in each process, and may do so again."""
    for hook in (_hook_config, _hook_requests, _hook_speculator):
        try:
            hook()
        except Exception as error:  # an unknown vLLM: whoever does not use us must not notice
            logger.debug("Foretoken's plugin does not fit this vLLM: %r.", error)


def is_asked_for(config: Any) -> bool:
    """Whether an engine's ``VllmConfig`` asks for our drafter."""
    speculative = config.speculative_config
    model = getattr(speculative, "model", None)
    return isinstance(model, str) and f"{model}.".startswith(f"{PACKAGE}.")


def prepare(config: Any) -> None:
    """Check the config of an engine, and put our worker in if it asks for our drafter.

    Raises:
        ForetokenError: If the options are wrong, are for nobody, or vLLM is not one that was tested.
    """
    if not is_asked_for(config):
        if isinstance(config.additional_config, dict) and KEY in config.additional_config:
            raise RequestError(
                f"additional_config has options for {KEY!r}, and the engine does not ask for its drafter: give "
                f'speculative_config={{"method": "custom_class", "model": "{DRAFTER}", "num_speculative_tokens": 8}}.'
            )
        return
    Settings.of(config)
    EngineOptions.read(config.additional_config)
    speculative, parallel = config.speculative_config, config.parallel_config
    parallel.worker_cls = WORKERS.get(parallel.worker_cls, parallel.worker_cls)
    is_ours = parallel.worker_cls in WORKERS.values()
    if speculative.method == "custom_class":
        speculative.model = INFORMED_DRAFTER if is_ours else DRAFTER
    elif not (is_ours and config.use_v2_model_runner):
        raise RequestError(
            f"The method {speculative.method!r} with Foretoken's speculator needs vLLM's newer runner and its own "
            f'worker, which this engine does not use: give the method "custom_class" and the model "{DRAFTER}".'
        )


def check_request(extra_args: Any, speculative_config: Any) -> None:
    """Check what a request says to our drafter.

    Raises:
        ForetokenError: If the options are wrong, or this engine cannot honour them.
    """
    if not extra_args or KEY not in extra_args:
        return
    RequestOptions.read(extra_args)
    model = getattr(speculative_config, "model", None)
    if model != INFORMED_DRAFTER and not (isinstance(model, str) and model.startswith(f"{PACKAGE}.model_runner_v2.")):
        raise RequestError(
            f"extra_args has options for {KEY!r}, and this engine does not run its drafter with its worker: leave them "
            "out."
        )


def _hook_config() -> None:
    from vllm.engine.arg_utils import EngineArgs

    def create(original: Callable[..., Any], self: Any, *arguments: Any, **named: Any) -> Any:
        config = original(self, *arguments, **named)
        prepare(config)
        return config

    _wrap(EngineArgs, "create_engine_config", create)


def _hook_requests() -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import SamplingParams

    def verify(
        original: Callable[..., Any], self: Any, model_config: Any, speculative_config: Any, *rest: Any, **named: Any
    ) -> None:
        original(self, model_config, speculative_config, *rest, **named)
        try:
            check_request(self.extra_args, speculative_config)
        except RequestError as error:
            raise VLLMValidationError(str(error), parameter="extra_args") from error

    _wrap(SamplingParams, "verify", verify)


def _hook_speculator() -> None:
    import vllm.v1.worker.gpu.spec_decode as package

    def init(original: Callable[..., Any], vllm_config: Any, device: Any, req_states: Any) -> Any:
        if not is_asked_for(vllm_config):
            return original(vllm_config, device, req_states)
        from foretoken.hosts.vllm.model_runner_v2 import ForetokenSpeculator

        return ForetokenSpeculator(vllm_config, device, req_states)

    _wrap(package, "init_speculator", init)
    # The runner imports the function by name: where it was imported before, that name is another one.
    runner = sys.modules.get("vllm.v1.worker.gpu.model_runner")
    if runner is not None:
        _wrap(runner, "init_speculator", init)


def _wrap(owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Let ``function(original, ...)`` stand for a function of vLLM's, once."""
    original = getattr(owner, name)
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        return function(original, *arguments, **named)

    setattr(wrapped, MARK, True)
    setattr(owner, name, wrapped)
