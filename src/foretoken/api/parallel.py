"""One answer by several processes: lookahead decoding whose rows they share (lookahead parallelism, 2402.02057)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Unpack

from foretoken.api.answer import Stream
from foretoken.api.language_model import LanguageModel, load
from foretoken.api.options import Options, Prompt
from foretoken.core.budget import FixedBudget
from foretoken.core.errors import RequestError
from foretoken.drafters import Lookahead, LookaheadDrafter, Parts
from foretoken.engines.parallel import ParallelTarget, Ranks, process_group

REFUSED = ("drafter", "references", "namespace")


class ParallelModel:
    """The same model in each process of a group. Every process must ask for the same answers in the same order.

    Nothing is drafted from memory and no answer is kept: what another thread fills differs between processes.

    Args:
        lm: This process's model, on its own device.
        ranks: The processes of the group.
    """

    def __init__(self, lm: LanguageModel, ranks: Ranks) -> None:
        self.lm, self.rank = lm, ranks.rank

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Answer a prompt or a conversation chunk by chunk. Every process must read all the chunks.

        Raises:
            ForetokenError: As ``LanguageModel.stream``, and for an option that only other drafters take.
        """
        for name in REFUSED:
            if name in options:
                raise RequestError(f"Lookahead parallelism drafts from the text and its window only: leave out {name}.")
        given: dict[str, Any] = dict(options)
        budget = given.pop("budget", None)
        request = self.lm.prepare(prompt, **given)
        drafter = Lookahead().make(Parts.of(self.lm.engine, request.target))
        budget = budget or FixedBudget(drafter.shape.guesses * (drafter.shape.ngram - 1))
        steps = replace(request, target=ParallelTarget(request.target)).steps(drafter, budget)
        engine = self.lm.engine
        return Stream(steps, engine.detokenizer(request.prompt), len(request.prompt), engine.exact)


@contextmanager
def load_parallel(
    model: str = "tiny", *, dtype: str = "auto", device: str | None = None, exact: bool = False
) -> Iterator[ParallelModel]:
    """Load a model in each of the processes that torchrun started, and leave their group in the end.

    Args:
        model: As ``foretoken.load`` takes it.
        dtype: As ``foretoken.load`` takes it.
        device: "cpu" or "cuda". If None, GPUs are used if there are any.
        exact: Whether drafted logits must be plain decoding's in every bit. There is no "auto" here, since the
            processes might not all find the same.

    Yields:
        The model of this process.

    Raises:
        ForetokenError: If torchrun did not start this process, there are more processes than work for them, or the
            model cannot be loaded.
    """
    shape = LookaheadDrafter().shape
    with process_group(device, max_ranks=shape.window + shape.guesses) as ranks:
        place = str(ranks.device)
        lm = load(model, dtype=dtype, device=place, drafter="none", background=None, history=False, exact=exact)
        yield ParallelModel(lm, ranks)
