"""vLLM's workers, which also tell our drafter what the scheduler says and what the model's output head read.

The plugin puts them in. By hand: ``worker_cls="foretoken.hosts.vllm.worker.CPUWorker"``, or ``GPUWorker``, with
``"foretoken.hosts.vllm.worker.InformedDrafter"`` as the speculative config's ``model``.
"""

from __future__ import annotations

from typing import Any

from foretoken.hosts.vllm.settings import check_version


class TellsDrafter:
    """What is put in front of a worker of vLLM's."""

    model_runner: Any
    use_v2_model_runner: bool

    def execute_model(self, scheduler_output: Any) -> Any:
        """One forward, of which the drafter is told beforehand."""
        drafter = self._drafter()
        if drafter is not None:
            drafter.follow(scheduler_output.scheduled_new_reqs, scheduler_output.finished_req_ids)
        return super().execute_model(scheduler_output)  # type: ignore[misc]

    def sample_tokens(self, grammar_output: Any) -> Any:
        """The choice of tokens after a forward, and the drafts for the next one."""
        drafter = self._drafter()
        state = self.model_runner.execute_model_state
        if drafter is not None and state is not None and not self.use_v2_model_runner:
            from foretoken.hosts.vllm.informed import Forward

            names = self.model_runner.input_batch.req_ids
            drafted = state.spec_decode_metadata
            num_logits = [1] * len(names) if drafted is None else [1 + num for num in drafted.num_draft_tokens]
            drafter.inform(Forward(list(names), state.sample_hidden_states, num_logits))
        return super().sample_tokens(grammar_output)  # type: ignore[misc]

    def _drafter(self) -> Any:
        """Ours, in whatever runner; None where another one drafts."""
        drafter = getattr(self.model_runner, "speculator" if self.use_v2_model_runner else "drafter", None)
        return drafter if hasattr(drafter, "follow") else None


def __getattr__(name: str) -> Any:
    """Make the class that vLLM asks for: each imports what only its own platform has."""
    if name == "InformedDrafter":
        from foretoken.hosts.vllm.informed import InformedDrafter

        return InformedDrafter
    if name == "CPUWorker":
        from vllm.v1.worker.cpu_worker import CPUWorker as Base
    elif name == "GPUWorker":
        from vllm.v1.worker.gpu_worker import Worker as Base
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_version()
    globals()[name] = type(name, (TellsDrafter, Base), {"__doc__": Base.__doc__, "__module__": __name__})
    return globals()[name]
