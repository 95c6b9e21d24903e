"""The loop: propose, score, verify, keep, until done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from foretoken.core.budget import Budget, FixedBudget
from foretoken.core.contracts import (
    Drafter,
    FinishReason,
    Scores,
    Step,
    Target,
    announce,
    clock_of,
    needs_of,
    require,
    reread_by,
)
from foretoken.core.draft import Draft
from foretoken.core.errors import RequestError
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
        drafter: Where guesses come from. If None, decode plainly.
        prompt: Token ids, at least one.
        max_new_tokens: The most tokens to add, also limited by ``target.max_length``.
        stop_tokens: Tokens that end the answer; the one that does is part of it.
        stop: Asked after every single token, with all of them; true ends the answer there.
        budget: How many tokens to draft. If None, ``FixedBudget()``.
        verify: The rule of acceptance.

    Raises:
        ForetokenError: If the prompt is empty, leaves no room in the context, ``max_new_tokens`` is below 1 or no
            whole number, or the drafter needs what the target does not provide. All before any forward.

    >>> from foretoken.drafters import AdaptiveNgram
    >>> from foretoken.engines.toy import ToyTarget
    >>> def answer(drafter):
    ...     return [token for step in decode(ToyTarget(), drafter, [1, 2], max_new_tokens=40) for token in step.tokens]
    >>> answer(AdaptiveNgram()) == answer(None)
    True
    """
    max_new_tokens = whole("max_new_tokens", max_new_tokens)
    check_request(len(prompt), max_new_tokens, target.max_length)
    if drafter is not None:
        require(type(drafter).__name__, needs_of(drafter), target)
    context = [whole("A token of the prompt", token) for token in prompt]
    length = min(len(context) + max_new_tokens, target.max_length or len(context) + max_new_tokens)
    answer = _Answer(target, drafter, context, length, frozenset(stop_tokens), stop, budget or FixedBudget(), verify)
    return answer.steps()


def check_request(num_prompt_tokens: int, max_new_tokens: int, max_length: int | None) -> None:
    """Refuse what cannot be answered, before any forward.

    Raises:
        ForetokenError: As ``decode``.
    """
    if num_prompt_tokens == 0:
        raise RequestError("The prompt is empty: give at least one token to continue.")
    if max_new_tokens < 1:
        raise RequestError(f"max_new_tokens is {max_new_tokens}: ask for at least 1 token.")
    if max_length is not None and num_prompt_tokens >= max_length:
        raise RequestError(
            f"The prompt has {num_prompt_tokens} tokens and the model's context holds {max_length}: "
            "shorten the prompt so that the answer has room."
        )


@dataclass(slots=True)
class _Answer:
    """An answer in the making: the arguments of ``decode``, and what has been committed.

    Args:
        context: All committed tokens, of the prompt and of the answer.
        length: How many tokens ``context`` may have at most.
    """

    target: Target
    drafter: Drafter | None
    context: list[int]
    length: int
    stop_tokens: frozenset[int]
    stop: Callable[[Sequence[int]], bool] | None
    budget: Budget
    verifier: Verifier
    finish_reason: FinishReason | None = None
    clock: Callable[[], float] = field(init=False)

    def __post_init__(self) -> None:
        self.clock = clock_of(self.target)

    def steps(self) -> Iterator[Step]:
        """The prefill's step, which has no draft, then one for each forward over a draft."""
        announce(frozenset() if self.drafter is None else needs_of(self.drafter), self.target)
        if self.drafter is not None:
            self.drafter.begin(self.context)
        step = self.verify(Draft(), self.target.prefill(self.context))
        self.target.keep(step.path)
        yield step
        while step.finish_reason is None:
            started = self.clock()

            # Propose.
            num_reread = reread_by(self.target)
            draft, propose_seconds = self.propose(num_reread)

            # Score. The last committed token is not in the cache yet: it goes first.
            scores = self.target.score(self.context[-1], draft)

            # Verify.
            step = self.verify(draft, scores, propose_seconds, num_reread)

            # Keep. The cache forgets the wrong guesses.
            self.target.keep(step.path)

            seconds = self.clock() - started
            yield step
            self.budget.observe(step, seconds)  # only now: should this fail, the caller has seen what the cache holds

    def propose(self, num_reread: int | None) -> tuple[Draft, float]:
        """A draft that fits the budget, the target and the end of the answer; and the seconds that the drafter took."""
        max_depth = self.length - len(self.context) - 1  # the answer's last token needs no guess
        limit = self.target.max_draft_depth
        if limit is not None:
            max_depth = min(max_depth, limit)
        max_tokens = self.budget.max_draft_tokens() if max_depth > 0 else 0
        if self.drafter is None or max_tokens == 0:
            return Draft(), 0.0
        started = self.clock()
        draft = self.drafter.propose(self.context, max_tokens)
        seconds = self.clock() - started
        if not self.target.supports_trees:
            draft = draft.main_chain()
        elif draft.num_lookahead and limit is not None and max(draft.depths) > limit:
            # Lookahead rows may stand beyond the answer's end, but not beyond the model's places.
            draft = draft.guesses()
        draft = draft.within(max_depth)
        if num_reread is None:  # as of all models without a recurrent state: a caller's budget need not know of it
            return self.budget.choose(draft), seconds
        return self.budget.choose(draft, num_reread), seconds

    def verify(self, draft: Draft, scores: Scores, propose_seconds: float = 0.0, num_reread: int | None = None) -> Step:
        """Commit the guesses that survive and the target's own token, and let the drafter see them.

        An error of a processor, a stop criterion, the drafter or Ctrl-C drops the draft from the cache: the caller has
        seen no token of this step.
        """
        start = len(self.context)
        try:
            path = self.verifier(draft, scores, self.commit).path
            tokens = tuple(self.context[start:])
            step = Step(draft, tokens, scores, self.finish_reason, path, num_reread, propose_seconds)
            if self.drafter is None:
                return step
            started = self.clock()
            self.drafter.observe(step)
            return replace(step, observe_seconds=self.clock() - started)
        except BaseException:
            self.target.keep(())
            raise

    def commit(self, token: int) -> bool:
        """Add a token, the target's own object and never the drafter's; whether the answer ends with it."""
        self.context.append(token)
        stopped = self.stop is not None and self.stop(self.context)  # asked also of a token that ends the answer anyway
        if stopped or token in self.stop_tokens:
            self.finish_reason = "stop"
        elif len(self.context) == self.length:
            self.finish_reason = "length"
        return self.finish_reason is not None
