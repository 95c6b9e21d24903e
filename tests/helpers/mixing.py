"""The n-gram core with lists and dictionaries: it searches the whole text anew for every vote, and shares nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from foretoken.ngrams.arrays import BACKGROUND, LOCAL, LOGIT, PROB, RECYCLED, SEEN, SHARED, SKIP
from foretoken.ngrams.kernels import OFFSET
from foretoken.ngrams.shared import SharedNgrams, rows_now, sets_of, table_of

Vote = tuple[int, int]  # of a slot, and how strong


def few(count: int) -> int:
    return sum(count > most for most in (0, 1, 2, 4, 8, 16, 48))


def strength(kind: int, order: int, count: int, other: int, latest: bool) -> Vote:
    slot = kind * 8 + order - 1
    return slot, slot * 128 + count * 16 + other * 2 + latest


def successors(text: Sequence[int], context: Sequence[int]) -> list[tuple[int, int]]:
    """(token, count) of what followed a context, the latest first; -1 separates sequences."""
    n, counts = len(context), {}
    for i in range(n, len(text)):
        if list(text[i - n : i]) == list(context) and text[i] >= 0:
            counts[text[i]] = (counts.pop(text[i], (0, 0))[0] + 1, i)
    return [(token, counts[token][0]) for token in reversed(counts)]


def set_of(longest: Sequence[int]) -> int:
    """Which weights belong to these longest contexts of the three stores and of what was named."""
    local, shared, background, named = longest
    shared_step, background_step = (0, 1, 2, 3, 4, 4, 4, 5, 5)[shared], (0, 1, 2, 2, 3, 3)[background]
    return (local * 24 + shared_step * 4 + background_step) * 4 + (3 if named > 8 else min(2, named))


def known(votes: Sequence[Vote], set_: int) -> list[int]:
    """The longest context of each store among the votes for one token; 9 where the target named others only."""
    orders = [max((slot - 8 * kind + 1 for slot, _ in votes if slot // 8 == kind), default=0) for kind in (0, 1, 2, 4)]
    return [*orders[:3], orders[3] or (9 if set_ % 4 else 0)]


class Plain:
    """The votes and the mixer of one sequence, with a memory's weights as they are now."""

    def __init__(self, memory: SharedNgrams, earlier: Sequence[Sequence[int]], text: Sequence[int]) -> None:
        rows = rows_now(memory.weights).astype(float)
        self.table, self.weight = table_of(rows), sets_of(rows)
        self.shared = [token for answer in earlier for token in [*answer, -1]]
        self.text = list(text)
        self.background: Callable[[Sequence[int]], list[list[tuple[int, int, int]]]] = lambda context: []
        self.named: dict[tuple[int, ...], tuple[list[tuple[int, float]], bool]] = {}

    def name(self, ahead: Sequence[int], successors: list[tuple[int, float]], committed: bool) -> None:
        """The target named these after the text and some tokens, which were committed or only guessed."""
        context = (*self.text, *ahead)
        for order in range(1, 1 + min(4, len(context))):
            self.named[context[-order:]] = (successors, committed)

    def votes(self, ahead: Sequence[int] = ()) -> tuple[dict[int, list[Vote]], int]:
        """The votes for each token after the text and some guessed tokens; and which weights to use.

        Tokens learn one after the other, in the order in which they were first voted for.
        """
        context = [*self.text, *ahead]
        votes: dict[int, list[Vote]] = {}
        longest = [0, 0, 0, 0]
        for kind, text in ((LOCAL, self.text), (SHARED, self.shared)):
            for order in range(min(8, len(context)), 0, -1):
                found = successors(text, context[-order:])
                total = sum(count for _, count in found)
                for i, (token, count) in enumerate(found[:6]):
                    vote = strength(kind, order, few(count), few(total - count), i == 0)
                    votes.setdefault(token, []).append(vote)
                longest[kind] = max(longest[kind], order if found else 0)
            if kind == LOCAL and longest[LOCAL] < 6:
                for order in range(1, 1 + min(4, len(context))):
                    named, committed = self.named.get(tuple(context[-order:]), ([], False))
                    for rank, (token, prob) in enumerate(named):
                        if prob >= 0.008:
                            step = sum(prob > most for most in (0.02, 0.06, 0.15, 0.35, 0.6, 0.85, 0.97))
                            votes.setdefault(token, []).append(strength(RECYCLED, order, step, rank, committed))
                    longest[3] = order if named else longest[3]
        for order, rows in enumerate(self.background(context), start=1):
            if not rows:
                break
            longest[BACKGROUND] = order
            for token, *logs in rows:
                count, other = (few(round(2 ** ((log - 1) / 4))) if log else 0 for log in logs)
                votes.setdefault(token, []).append(strength(BACKGROUND, order, count, other, False))
        for gap in (1, 2, 3):
            for token, vote in self.after_an_edit(context, gap):
                votes.setdefault(token, []).append(vote)
        return votes, set_of(longest)

    def after_an_edit(self, context: list[int], gap: int) -> list[tuple[int, Vote]]:
        """What came after the place that reads the same but for the last ``gap`` tokens, if any of them differs."""
        text, before, edited = self.text, context[: len(context) - gap], context[len(context) - gap :]
        for i in range(len(text) - 5, 0, -1):  # the latest place of the same two tokens; not the very end
            if len(before) >= 2 and text[i - 1 : i + 1] == before[-2:]:
                break
        else:
            return []
        place = text[i + 1 : i + 1 + gap]
        changed = sum(a != b for a, b in zip(place, edited, strict=True))
        if changed == 0:
            return []
        same = 2
        while same < min(24, len(before), i + 1) and text[i - same] == before[-1 - same]:
            same += 1
        agreed = sum(same > most for most in (2, 3, 5, 8, 15))
        return [(text[i + 1 + gap], strength(SKIP, gap, agreed, changed, place[-1] != edited[-1]))]

    def mix(self, votes: dict[int, list[Vote]], set_: int) -> dict[int, float]:
        """The probability of each token, unscaled."""
        logits = {}
        for token, of_token in votes.items():
            weight = self.weight[set_] + self.weight[864 + set_of(known(of_token, set_))] + self.weight[-1]
            logits[token] = weight[-1] + sum(weight[slot] * (self.table[key, LOGIT] + OFFSET) for slot, key in of_token)
        return {token: 1 / (1 + math.exp(-min(15, max(-15, logit)))) for token, logit in logits.items()}

    def probs(self, ahead: Sequence[int] = ()) -> dict[int, float]:
        """The probability of each token after the text and some guessed tokens."""
        probs = self.mix(*self.votes(ahead))
        total = max(1, sum(probs.values()))
        return {token: prob / total for token, prob in probs.items()}

    def commit(self, token: int, rate: float) -> None:
        """Learn from the next token."""
        votes, set_ = self.votes()
        for voted, prob in self.mix(votes, set_).items():
            right = float(voted == token)
            error = (right - prob) * rate
            own = 864 + set_of(known(votes[voted], set_))
            for slot, key in votes[voted]:
                entry = self.table[key]
                self.weight[set_, slot] += error * (entry[LOGIT] + OFFSET)
                self.weight[own, slot] += error * (entry[LOGIT] + OFFSET)
                self.weight[-1, slot] += 0.3 * error * (entry[LOGIT] + OFFSET)
                entry[SEEN] += 1
                step = max(1 / (entry[SEEN] + 1.5), 0.004)
                entry[PROB] = min(0.999, max(0.0005, entry[PROB] + step * (right - entry[PROB])))
                entry[LOGIT] = math.log(entry[PROB] / (1 - entry[PROB]))
            self.weight[set_, -1] += error
            self.weight[own, -1] += error
            self.weight[-1, -1] += 0.3 * error
        self.text.append(token)
