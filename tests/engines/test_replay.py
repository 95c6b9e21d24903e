from __future__ import annotations

import pytest

from foretoken import DecodeStats, ForetokenError, decode, rejection_verifier
from foretoken.drafters import AdaptiveNgram
from foretoken.engines.replay import ReplayTarget
from foretoken.engines.transformers.target import TransformersTarget
from helpers.drafting import Oracle
from helpers.shapes import VOCAB, tiny_model

PROMPT, RECORD = [1, 2, 3], [(i * i) % 7 for i in range(60)]


def replay(target, drafter) -> tuple[list[int], DecodeStats]:
    stats, tokens = DecodeStats(), []
    for step in decode(target, drafter, PROMPT, max_new_tokens=len(RECORD)):
        stats.add(step)
        tokens += step.tokens
    return tokens, stats


@pytest.mark.parametrize("drafter", [None, AdaptiveNgram(), Oracle(0, PROMPT, RECORD, VOCAB)])
def test_the_record_comes_out_alone_and_over_a_model(drafter):
    tokens, alone = replay(ReplayTarget(RECORD), drafter)
    assert tokens == RECORD
    engine = TransformersTarget(tiny_model("llama"))
    if isinstance(drafter, Oracle):
        drafter = Oracle(0, PROMPT, RECORD, VOCAB)
    tokens, over_a_model = replay(ReplayTarget(RECORD, engine), drafter)
    assert tokens == RECORD and engine.num_cached == len(PROMPT) + len(RECORD) - 1
    assert (alone.steps, alone.accepted) == (over_a_model.steps, over_a_model.accepted)


def test_a_record_has_no_second_choice():
    with pytest.raises(ForetokenError, match="drafters that see only tokens"):
        ReplayTarget(RECORD).prefill(PROMPT).runner_up(0)


def test_a_record_has_no_probabilities():
    with pytest.raises(ForetokenError, match="verify_match"):
        list(decode(ReplayTarget(RECORD), None, PROMPT, max_new_tokens=5, verify=rejection_verifier(lambda: 0.5)))
