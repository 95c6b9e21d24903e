"""Which drafted tokens survive: the rule that keeps the promise, and the one that keeps only the distribution."""

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


def rejection_verifier(uniform: Callable[[], float]) -> Verifier:
    """The rule of speculative sampling, drawing from ``uniform``, which returns numbers in [0, 1).

    Keeps the target's distribution, not the sample path, and may accept drafts that ``verify_match`` would not, where
    these were sampled: Leviathan et al. 2023 and Chen et al. 2023 for a chain; siblings in turn, each against what
    the ones before it left over, as SpecInfer (Miao et al. 2024).
    """

    def verify_rejection(draft: Draft, scores: Scores, commit: Commit = goes_on) -> Verdict:
        if draft and not draft.laws:
            raise ValueError("verify_rejection needs the law that each drafted token was drawn from")
        path: list[int] = []
        node = -1
        while True:
            law = scores.law(node + 1)
            for child in draft.children(node):
                # Accept with probability min(1, p / q), written so that q = 0 cannot divide.
                if uniform() * draft.laws[child].prob(draft.tokens[child]) < law.prob(draft.tokens[child]):
                    break
                law = law.minus(draft.laws[child])
            else:
                child = -1
            token = int(draft.tokens[child]) if child != -1 else law.draw(uniform())
            ended = commit(token)
            if ended or child == -1:
                return Verdict(tuple(path), token)
            path.append(child)
            node = child

    return verify_rejection
