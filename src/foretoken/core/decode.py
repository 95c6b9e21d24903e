"""The loop: propose, score, verify, keep, until done."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence

from foretoken.core.budget import Budget, FixedBudget
from foretoken.core.contracts import Drafter, FinishReason, Step, Target
from foretoken.core.draft import Draft
from foretoken.core.errors import ForetokenError
from foretoken.core.numbers import whole
from foretoken.core.verify import Verifier, verify_match


def decode(
    target: Target,
    drafter: Drafter | None,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    stop_tokens: Collection[int] = (),
    stop: Callable[[Sequence[int]], bool] | None = None,
    budget: Budget | None = None,
    verify: Verifier = verify_match,
) -> Iterator[Step]:
    """Answer ``prompt``, a step at a time; with ``verify_match`` the tokens are the same whatever drafts.

    The caller may stop after any step: the target's cache then holds every committed token but the last one. An
    error within a step, of a logits processor or a stop criterion, leaves there what was before the step. The budget
    learns of a step once the caller comes back for more.

    Args:
        target: The model that decides.
        drafter: Where guesses come from; None decodes plainly.
        prompt: Token ids, at least one.
        max_new_tokens: The most tokens to add, also limited by ``target.max_length``.
        stop_tokens: Tokens that end the answer; the one that does is part of it.
        stop: Asked after every single token, with all of them; true ends the answer there.
        budget: How many tokens to draft; ``FixedBudget()`` where None.
        verify: The rule of acceptance.

    Raises:
        ForetokenError: If the prompt is empty, leaves no room in the context, or ``max_new_tokens`` is below 1 or no
            whole number.

    >>> from foretoken.drafters import AdaptiveNgram
    >>> from foretoken.engines.toy import ToyTarget
    >>> def answer(drafter):
    ...     return [token for step in decode(ToyTarget(), drafter, [1, 2], max_new_tokens=40) for token in step.tokens]
    >>> answer(AdaptiveNgram()) == answer(None)
    True
    """
    max_new_tokens = whole("max_new_tokens", max_new_tokens)
    check_request(len(prompt), max_new_tokens, target.max_length)
    return _steps(
        target,
        drafter,
        [whole("A token of the prompt", token) for token in prompt],
        min(len(prompt) + max_new_tokens, target.max_length or len(prompt) + max_new_tokens),
        frozenset(stop_tokens),
        stop,
        budget or FixedBudget(),
        verify,
    )


def check_request(num_prompt_tokens: int, max_new_tokens: int, max_length: int | None) -> None:
    """Refuse what cannot be answered, before any forward.

    Raises:
        ForetokenError: As ``decode``.
    """
    if num_prompt_tokens == 0:
        raise ForetokenError("The prompt is empty: give at least one token to continue.")
    if max_new_tokens < 1:
        raise ForetokenError(f"max_new_tokens is {max_new_tokens}: ask for at least 1 token.")
    if max_length is not None and num_prompt_tokens >= max_length:
        raise ForetokenError(
            f"The prompt has {num_prompt_tokens} tokens and the model's context holds {max_length}: "
            "shorten the prompt so that the answer has room."
        )


def _steps(
    target: Target,
    drafter: Drafter | None,
    context: list[int],
    end: int,
    stop_tokens: frozenset[int],
    stop: Callable[[Sequence[int]], bool] | None,
    budget: Budget,
    verify: Verifier,
) -> Iterator[Step]:
    tokens: list[int] = []  # of this step: the target's own objects, never the drafter's
    finish_reason: FinishReason | None = None

    def commit(token: int) -> bool:
        nonlocal finish_reason
        tokens.append(token)
        context.append(token)
        stopped = stop is not None and stop(context)  # asked about every token, also one that ends the answer anyway
        if stopped or token in stop_tokens:
            finish_reason = "stop"
        elif len(context) == end:
            finish_reason = "length"
        return finish_reason is not None

    if drafter is not None:
        drafter.begin(context)
    draft, draft_seconds, scores = Draft(), 0.0, target.prefill(context)
    started: float | None = None  # the prefill is no step
    while True:
        try:
            verdict = verify(draft, scores, commit)
            step = Step(draft, tuple(tokens), scores, finish_reason)
            observed = time.perf_counter()
            if drafter is not None:
                drafter.observe(step)
            draft_seconds += time.perf_counter() - observed
        except BaseException:  # of a processor, a stop criterion or Ctrl-C: the caller has seen no token of this step
            target.keep(())
            raise
        target.keep(verdict.path)  # the last token is pending: the next score writes it to the cache
        seconds = None if started is None else time.perf_counter() - started
        yield step
        if seconds is not None:  # only now: should this fail, the caller has seen what the cache holds
            budget.observe(draft, step.num_accepted, seconds, draft_seconds)
        if finish_reason is not None:
            return
        tokens.clear()
        started = time.perf_counter()
        draft, draft_seconds = _propose(target, drafter, context, end, budget)
        scores = target.score(context[-1], draft)


def _propose(
    target: Target, drafter: Drafter | None, context: list[int], end: int, budget: Budget
) -> tuple[Draft, float]:
    """A draft that fits the budget, the target and the end of the answer; and the seconds that the drafter took."""
    max_depth, limit = end - len(context) - 1, target.max_draft_depth  # the answer's last token needs no guess
    if limit is not None:
        max_depth = min(max_depth, limit)
    max_tokens = budget.max_draft_tokens() if max_depth > 0 else 0
    if drafter is None or max_tokens == 0:
        return Draft(), 0.0
    started = time.perf_counter()
    draft = drafter.propose(context, max_tokens)
    seconds = time.perf_counter() - started
    if not target.supports_trees:
        draft = draft.main_chain()
    elif draft.num_lookahead and limit is not None and max(draft.depths) > limit:
        draft = draft.guesses()  # lookahead rows may stand beyond the answer's end, but not beyond the model's places
    return budget.choose(draft.within(max_depth)), seconds
