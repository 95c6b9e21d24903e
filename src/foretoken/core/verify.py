"""Which drafted tokens survive: the rule that keeps the promise."""

from __future__ import annotations

from collections.abc import Callable

from foretoken.core.contracts import Scores, Verdict
from foretoken.core.draft import Draft

Commit = Callable[[int], bool]
"""Called with every token of the answer, in order and before the next one is asked for; true where the answer ends."""

Verifier = Callable[[Draft, Scores, Commit], Verdict]


def goes_on(token: int) -> bool:
    """The ``Commit`` of an answer that has no end."""
    return False


def verify_match(draft: Draft, scores: Scores, commit: Commit = goes_on) -> Verdict:
    """Accept a node when it is the token that the target chose there.

    The target is asked for no token after one that ends the answer, as plain decoding would not ask it: a logits
    processor may keep a state.

    Only tokens that the target chose are ever emitted, so the output cannot depend on the draft, and for drafts that
    were not sampled no lossless rule accepts more. Stern et al. 2018 for argmax; with a choice that the seed and the
    position decide, also under sampling (Daliri et al. 2024).

    >>> from foretoken.engines.toy import ToyTarget
    >>> target = ToyTarget()
    >>> scores = target.prefill([1, 2, 3])
    >>> verify_match(Draft(), scores).next_token == scores.choose(0)
    True
    """
    path: list[int] = []
    node = -1
    while True:
        token = scores.choose(node + 1)
        ended = commit(token)
        node = next((child for child in draft.children(node) if draft.tokens[child] == token), -1)
        if ended or node == -1:
            return Verdict(tuple(path), token)
        path.append(node)
