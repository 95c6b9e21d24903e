"""Which state belongs to which row: vLLM tells no names, rows move, and requests end without a word."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foretoken.hosts.vllm.states import EDGE
from foretoken.ngrams.arrays import Ints
from foretoken.ngrams.kernels import compiled, helper


@helper
def fits(slot: int, text: Ints, known: Ints, heads: Ints, tails: Ints) -> bool:
    """Whether a text begins with a slot's text, as far as both ends of that tell."""
    length = known[slot]
    for i in range(min(EDGE, length)):
        if tails[slot, EDGE - 1 - i] != text[length - 1 - i] or heads[slot, i] != text[i]:
            return False
    return True


@compiled
def follow(
    texts: Ints,
    before: Ints,
    last: Ints,
    known: Ints,
    heads: Ints,
    tails: Ints,
    taken: NDArray[np.uint8],
    slots: Ints,
) -> None:
    """Find each row's slot: where the row had it in the last step, or among those that no row has.

    Args:
        texts: int32 [rows or more, any].
        before: int32 [rows], how many tokens each row had before this step; what was known of it then is at most that.
        last: int32 [rows or more], the slot of each row in the last step, -1 for none.
        known: int32 [slots], the length of each slot's text; 0 for a free slot.
        heads: int32 [slots, EDGE], the first tokens of each.
        tails: int32 [slots, EDGE], the last tokens of each, the very last at the end.
        taken: uint8 [slots], zeros; 1 for those that have a row now.
        slots: int32 [rows], filled in; -1 where nothing fits.
    """
    for row in range(slots.size):
        slot = last[row]
        found = slot >= 0 and known[slot] == before[row] and not taken[slot]
        found = found and fits(slot, texts[row], known, heads, tails)
        slots[row] = slot if found else -1
        if found:
            taken[slot] = 1
    # What is known to the very end goes first: a text may begin like that of another request.
    for at_end in (True, False):
        for row in range(slots.size):
            best = -1
            for slot in range(known.size if slots[row] < 0 else 0):
                length = known[slot]
                if taken[slot] or length == 0 or length > before[row] or (at_end and length < before[row]):
                    continue
                if (best < 0 or length > known[best]) and fits(slot, texts[row], known, heads, tails):
                    best = slot
            if best >= 0:
                slots[row] = best
                taken[best] = 1


@compiled
def note(texts: Ints, slots: Ints, lengths: Ints, known: Ints, heads: Ints, tails: Ints) -> None:
    """Remember how far each row's text goes now, and what its ends are."""
    for row in range(slots.size):
        slot, length = slots[row], lengths[row]
        if slot < 0 or length == known[slot]:
            continue
        for i in range(min(EDGE, length)):
            heads[slot, i] = texts[row, i]
            tails[slot, EDGE - 1 - i] = texts[row, length - 1 - i]
        known[slot] = length
