from __future__ import annotations

import threading

import pytest
import torch
import transformers as tf
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from foretoken import DecodeStats, ForetokenError, decode
from foretoken.drafters.draft_model import DraftModelDrafter
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.processors import Padded, stateless
from foretoken.engines.transformers.second_model import check_same_tokens, draft_target, load_draft_model
from foretoken.engines.transformers.target import TransformersTarget
from helpers.shapes import LLAMA, SMALL, tiny_model
from helpers.tokenizing import character_tokenizer


def llama(vocab_size: int) -> tf.PreTrainedModel:
    return tf.AutoModelForCausalLM.from_config(tf.LlamaConfig(**LLAMA | {"vocab_size": vocab_size}))


def test_a_model_of_the_same_tokens_drafts(model_folder):
    model = tiny_model("qwen2")
    draft_model = load_draft_model(str(model_folder), model, character_tokenizer())
    assert draft_model.dtype == torch.float32 and not draft_model.training

    class CountsItsCalls:
        """A processor with a state: what it returns depends on how often it was asked."""

        calls = 0

        def __call__(self, ids, scores):
            self.calls += 1
            return scores + 3 * torch.sin(self.calls * torch.arange(scores.shape[1]))

    def answer(drafted: bool) -> list[int]:
        choice = Choice(LogitsProcessorList([CountsItsCalls()]), seed=3)
        target = TransformersTarget(model, choice)
        drafter = DraftModelDrafter(draft_target(draft_model, choice)) if drafted else None
        return [token for step in decode(target, drafter, [5, 6], max_new_tokens=30) for token in step.tokens]

    assert answer(drafted=True) == answer(drafted=False)


def test_a_draft_chooses_with_the_seed_and_with_processors_that_keep_no_state():
    """The model drafts for itself: only where seed and temperature are the answer's own is every guess right."""
    model = tiny_model("llama")

    def accepted(choice: Choice, drafting: Choice) -> tuple[int, int]:
        stats = DecodeStats()
        drafter = DraftModelDrafter(draft_target(model, drafting), floor=0.0, trees=False)
        for step in decode(TransformersTarget(model, choice), drafter, [5, 6], max_new_tokens=30):
            stats.add(step)
        return stats.accepted, stats.drafted

    hot = Choice(LogitsProcessorList([TemperatureLogitsWarper(1.5)]), seed=3)
    right, drafted = accepted(hot, hot)
    assert right == drafted
    for other in (Choice(hot.processors, seed=4), Choice(None, seed=3)):
        right, drafted = accepted(hot, other)
        assert right < 0.7 * drafted


def test_what_cannot_be_copied_is_left_out():
    class Locked:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __call__(self, ids, scores):
            return scores

    warper = TemperatureLogitsWarper(0.5)
    assert stateless(Choice(LogitsProcessorList([Locked(), warper]), 1)).processors == [warper]
    assert stateless(Choice(LogitsProcessorList([Locked()]), 1)).processors is None
    padded = stateless(Choice(Padded(LogitsProcessorList([Locked(), warper]), torch.tensor([[0]])), 1)).processors
    assert isinstance(padded, Padded) and padded.processors == [warper]


def test_other_tokens_are_refused(model_folder):
    other = character_tokenizer()
    other.add_tokens(["more"])
    with pytest.raises(ForetokenError, match="another tokenizer"):
        load_draft_model(str(model_folder), tiny_model("qwen2"), other)
    with pytest.raises(ForetokenError, match="has 60 tokens and the model 61"):
        check_same_tokens(llama(60), llama(61))
    with pytest.raises(ForetokenError, match="has 60 tokens and the tokenizer 61"):
        check_same_tokens(llama(60), llama(64), character_tokenizer(), character_tokenizer())


def test_padding_of_the_vocabulary_may_differ():
    check_same_tokens(llama(61), llama(64), character_tokenizer(), character_tokenizer())
    check_same_tokens(llama(64), llama(64))


def test_a_model_that_cannot_rewind_is_refused(tmp_path):
    mamba = tf.MambaConfig(**SMALL, hidden_size=16, num_hidden_layers=1, state_size=4)
    tf.AutoModelForCausalLM.from_config(mamba).save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ForetokenError, match="recurrent state"):
        load_draft_model(str(tmp_path), tiny_model("llama"), character_tokenizer())
