"""Trains a speculator in two stages: on text, then on what the base itself generates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from foretoken.core.errors import ModelError, RequestError
from foretoken.speculators.formats import save_speculator
from foretoken.speculators.module import SpeculatorModule
from foretoken.training import checkpoint
from foretoken.training.base import FrozenBase
from foretoken.training.judge import judge
from foretoken.training.kinds import Shape, finished, start, unfactored
from foretoken.training.optimizers import optimizers_of, share_of_rate
from foretoken.training.processes import Processes
from foretoken.training.shards import Generating, Shard, Shards
from foretoken.training.tokens import TokenStream

SEGMENT = 64  # rows of a window in a batch
CLIP = 1.0  # largest norm of a gradient
JUDGED = 32  # held-out texts of the base's own
PART = 4e9  # bytes that the logits of a part of a step may take
SHARD = 384  # windows of a shard
FREED = 0.7  # share of the steps on own texts after which a factored speculator is trained in its published tensors


@dataclass(frozen=True)
class Settings:
    """How to train.

    Args:
        steps: On text.
        own_steps: On the base's own texts.
        batch: Rows of a step, over all processes: a multiple of ``SEGMENT``.
        accumulate: Parts that a process computes its share of a step in, one after the other. If None, as many as keep
            the logits of a part and their gradients below 4 GB.
        rate: Peak of the learning rate on text; on the base's own texts it is half of that.
        passes: How often the rows of a shard are read.
        judge_every: Steps between two judgements, each with a checkpoint.
        seed: Decides everything.
        generating: How the base's own texts are made.
    """

    steps: int
    own_steps: int
    batch: int
    accumulate: int | None = None
    rate: float = 4e-3
    passes: int = 4
    judge_every: int = 100
    seed: int = 0
    generating: Generating = Generating()  # noqa: RUF009  # frozen

    def __post_init__(self) -> None:
        if self.batch % SEGMENT:
            raise RequestError(f"A batch of {self.batch} rows is no multiple of {SEGMENT}.")

    def parts(self, num_segments: int, num_heads: int, vocab_size: int) -> int:
        """Parts of a process's share of a step.

        Raises:
            ForetokenError: If there are fewer segments than parts.
        """
        row = 4 * vocab_size * (3 * num_heads + 2)  # bytes: of each head's logits, their exponentials and gradients
        parts = self.accumulate or min(num_segments, math.ceil(num_segments * SEGMENT * row / PART))
        if not 1 <= parts <= num_segments:
            raise RequestError(
                f"A process has {num_segments} segments of {SEGMENT} rows in a step, too few for {max(parts, 1)} "
                "parts: give a larger batch or fewer parts."
            )
        return parts


def scaled_settings(num_parameters: int) -> tuple[int, int, int]:
    """Steps on text, steps on own texts and rows of a step for a base of this size.

    From a billion parameters on they are those of arXiv 2404.19124; smaller bases get fewer, by the square root.
    """
    share = min(1.0, (num_parameters / 1e9) ** 0.5)
    rows = 1 << round(math.log2(32768 * share))
    return max(100, round(15000 * share)), max(40, round(6000 * share)), max(512, rows)


@dataclass(frozen=True)
class Moment:
    """Where a training is, for a progress bar and the report.

    Args:
        step: Counted from 1, over both stages.
        steps: Of both stages.
        stage: "text" or "own".
        losses: Of each head, in nats.
        accepted_length: At the last judgement. None before the first.
        top1: Likewise, for each head.
    """

    step: int
    steps: int
    stage: str
    losses: list[float]
    accepted_length: float | None = None
    top1: list[float] | None = None


Show = Callable[[Moment], None]


class Training:
    """One training, which goes on from its last checkpoint.

    Args:
        shape: Of the speculator.
        settings: How to train it.
        base: The frozen model.
        stream: The data.
        output: Folder of the speculator. The best so far is always in it.
        work: Folder of the texts and states, which trainings on the same base and data may share.
        show: Called after every step, in the first process.
        making: Told how far a shard is.

    Raises:
        ForetokenError: If the checkpoint in the output belongs to another training.
    """

    def __init__(
        self,
        shape: Shape,
        settings: Settings,
        base: FrozenBase,
        stream: TokenStream,
        output: Path,
        work: Path,
        show: Show = lambda moment: None,
        making: Callable[[str, int, int], None] = lambda name, done, total: None,
        processes: Processes | None = None,
    ) -> None:
        self._shape, self._settings, self._base = shape, settings, base
        self._output, self._show = output, show
        self._processes = processes or Processes()
        torch.manual_seed(settings.seed)
        self.module: SpeculatorModule = start(shape, base)
        self._optimizers = optimizers_of(self.module, base.vocab_size, settings.rate)
        make: dict[str, Any] = {"seed": settings.seed, "progress": making}
        generating = settings.generating
        self._stages = {
            "text": Shards(work, base, stream, SHARD, **make),
            "own": Shards(work, base, stream, SHARD, own=generating, **make),
        }
        self._judged = Shards(work, base, stream, JUDGED, own=generating, held_out=True, **make)
        self._path = output / "work" / "checkpoint.pt"
        self._identity = repr((shape, settings, base.name, stream.key, self._processes.count))
        self._step, self._best = 0, 0.0
        self.history: list[dict[str, Any]] = []
        self._restore()

    @property
    def best(self) -> float:
        """The accepted length of the speculator that is kept."""
        return self._best

    def run(self) -> None:
        """Train to the end.

        Raises:
            ForetokenError: If a loss is not a number, or the disk is full. The last good checkpoint is kept.
        """
        settings = self._settings
        steps = settings.steps + settings.own_steps
        judged = self._shared(self._judged, 0)
        shard: Shard | None = None
        at: tuple[str, int] | None = None
        verdict = self.history[-1] if self.history else {}
        while self._step < steps:
            if self._step == self._freed_at:
                self._free()
            stage = "text" if self._step < settings.steps else "own"
            number = self._shard_of(stage)
            if (stage, number) != at:
                shard, at = self._shared(self._stages[stage], number), (stage, number)
            assert shard is not None
            losses = self._take_step(stage, shard)
            self._step += 1
            is_last = self._step in (settings.steps, steps)
            if is_last or self._step % settings.judge_every == 0:
                verdict = asdict(judge(self.module, judged, self._base.device))
                verdict |= {"step": self._step, "stage": stage, "losses": losses}
                self.history.append(verdict)
                self._keep(verdict["accepted_length"], stage, number)
            if self._processes.is_main:
                self._show(
                    Moment(self._step, steps, stage, losses, verdict.get("accepted_length"), verdict.get("top1"))
                )

    @property
    def _freed_at(self) -> int:
        """The step from which on the published tensors themselves are trained."""
        return self._settings.steps + round(FREED * self._settings.own_steps)

    def _free(self) -> None:
        """Go on in the published tensors: few factored weights learn fast, all of the weights learn more."""
        free = unfactored(self.module)
        if free is not self.module:
            self.module = free
            self._optimizers = optimizers_of(self.module, self._base.vocab_size, self._settings.rate)

    def _shard_of(self, stage: str) -> int:
        """Which shard the next step reads."""
        done = self._step - (self._settings.steps if stage == "own" else 0)
        steps = max(1, self._stages[stage].num_labels * self._settings.passes // self._settings.batch)
        return done // steps

    def _shared(self, shards: Shards, number: int) -> Shard:
        """A shard that the first process makes for all."""
        if self._processes.is_main:
            shards.load(number)
        self._processes.wait()
        return shards.load(number)

    def _take_step(self, stage: str, shard: Shard) -> list[float]:
        settings, processes = self._settings, self._processes
        self._set_rate(stage)
        # The batch is a function of the seed and the step alone; every process takes its share of it.
        rng = np.random.default_rng((settings.seed, self._step, 7))
        segments = settings.batch // SEGMENT
        heads = self.module.num_heads
        windows = rng.integers(0, len(shard.ids), segments)
        starts = rng.integers(shard.first, shard.ids.shape[1] - SEGMENT - heads, segments)
        mine = np.arange(processes.rank, segments, processes.count)
        mean = segments / processes.count  # segments of a process, so that all of them count alike
        parts = np.array_split(mine, settings.parts(len(mine), heads, self._base.vocab_size))
        total = torch.zeros(heads, device=self._base.device)
        for part in parts:
            ids = np.stack(
                [shard.ids[w, s : s + SEGMENT + heads + 1] for w, s in zip(windows[part], starts[part], strict=True)]
            )
            states = np.stack(
                [shard.states[w, s : s + SEGMENT + heads] for w, s in zip(windows[part], starts[part], strict=True)]
            )
            device = self._base.device
            losses = self._losses(torch.from_numpy(states).to(device).float(), torch.from_numpy(ids).to(device))
            (torch.stack(losses).sum() * (len(part) / mean)).backward()
            total += torch.stack(losses).detach() * (len(part) / mean)
        weights = [weight for weight in self.module.parameters() if weight.grad is not None]
        processes.average([total, *(weight.grad for weight in weights if weight.grad is not None)])
        self._refuse_no_number(total, stage)
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return [round(x, 4) for x in total.tolist()]

    def _losses(self, states: Tensor, ids: Tensor) -> list[Tensor]:
        """The cross-entropy of each head with what the base itself expects there, in nats.

        Head i guesses the token after the row that is 1 + i rows on, so the base's distribution is that of its state
        there. It says more of every row than the one token that was drawn.
        """
        with torch.no_grad():
            expected = self._base.logprobs(states).exp()
        return [
            functional.cross_entropy(logits.flatten(0, 1), expected[:, 1 + i : 1 + i + SEGMENT].flatten(0, 1))
            for i, logits in enumerate(self.module.head_logits(states[:, :SEGMENT], ids))
        ]

    def _set_rate(self, stage: str) -> None:
        settings = self._settings
        if stage == "text":
            rate = settings.rate * share_of_rate(self._step, settings.steps, 0.1)
        else:
            rate = settings.rate / 2 * share_of_rate(self._step - settings.steps, settings.own_steps, 0.02)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _refuse_no_number(self, losses: Tensor, stage: str) -> None:
        for head, loss in enumerate(losses.tolist(), start=1):
            if not math.isfinite(loss):
                kept = (
                    f"the last good checkpoint is {str(self._path)!r}" if self._path.exists() else "nothing is kept yet"
                )
                raise ModelError(
                    f"The loss of head {head} is not a number in step {self._step + 1} (stage {stage}): lower the "
                    f"rate; {kept}."
                )

    def _keep(self, accepted_length: float, stage: str, number: int) -> None:
        """Checkpoint, the speculator if it is the best so far, and no states that are not needed any more."""
        if not self._processes.is_main:
            return
        if accepted_length > self._best:
            self._best = accepted_length
            self._save()
        checkpoint.save(
            self._path,
            {
                "identity": self._identity,
                "step": self._step,
                "best": self._best,
                "module": self.module.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
                "rng": torch.get_rng_state(),
                "history": self.history,
            },
        )
        self._stages[stage].drop_before(number)

    def _save(self) -> None:
        config = self._base.model.config
        save_speculator(
            finished(self.module),
            self._output,
            base_model=self._base.name,
            base_architectures=tuple(config.architectures or ()),
        )

    def _restore(self) -> None:
        state = checkpoint.load(self._path)
        if state is None:
            return
        if state["identity"] != self._identity:
            raise RequestError(
                f"The folder {str(self._output)!r} holds another training: give the same options to go on, or another "
                "output."
            )
        if state["step"] > self._freed_at:
            self._free()
        self.module.load_state_dict(state["module"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["rng"])
        self._step, self._best, self.history = state["step"], state["best"], state["history"]
