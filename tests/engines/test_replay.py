from __future__ import annotations

import pytest

from foretoken import DecodeStats, ForetokenError, decode
from foretoken.drafters import AdaptiveNgram, DraftModelDrafter, LookaheadDrafter, NgramMixer, RecycleDrafter
from foretoken.engines.replay import ReplayTarget
from foretoken.engines.toy import ToyTarget
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


@pytest.mark.parametrize("drafter", [RecycleDrafter(), NgramMixer(recycle=True), LookaheadDrafter()])
def test_a_record_has_no_likeliest_tokens_and_says_so_before_it_begins(drafter):
    target = ReplayTarget(RECORD)
    with pytest.raises(ForetokenError, match=f"{type(drafter).__name__} needs the likeliest tokens .* ReplayTarget"):
        decode(target, drafter, PROMPT, max_new_tokens=5)
    over_a_model = ReplayTarget(RECORD, TransformersTarget(tiny_model("llama")))
    assert replay(over_a_model, drafter)[0] == RECORD


def test_a_record_has_no_second_choice_over_a_model_either():
    for target in (ReplayTarget(RECORD), ReplayTarget(RECORD, ToyTarget())):
        with pytest.raises(ForetokenError, match=r"DraftModelDrafter needs the second choice .* ReplayTarget"):
            DraftModelDrafter(target)
