"""What the output head reads: exact, in this thread's forward only, and only where somebody asks."""

from __future__ import annotations

import threading

import pytest
import torch

from foretoken import FixedBudget, Step, decode
from foretoken.core.contracts import Need
from foretoken.engines.transformers.states import output_head, reading
from foretoken.engines.transformers.target import TransformersTarget
from helpers.drafting import RandomTrees
from helpers.shapes import CONFIGS, VOCAB, tiny_model

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


class Witness(RandomTrees):
    """Guesses at random, and keeps the state of each step's last kept row."""

    needs: frozenset[Need] = frozenset({"hidden"})

    def __init__(self, seed: int, vocab: int) -> None:
        super().__init__(seed, vocab)
        self.states: list[torch.Tensor] = []

    def observe(self, step: Step) -> None:
        assert step.scores is not None
        row = step.path[-1] + 1 if step.path else 0
        self.states.append(step.scores.hidden([row])[0])


@pytest.mark.parametrize("shape", CONFIGS)
def test_the_head_makes_of_a_state_the_logits_that_chose_the_pending_token(shape):
    model = tiny_model(shape)
    target, witness, ends = TransformersTarget(model, prefill_chunk=3), Witness(0, VOCAB), []
    tokens = list(PROMPT)
    for step in decode(target, witness, PROMPT, max_new_tokens=24, budget=FixedBudget(6)):
        tokens += step.tokens
        ends.append(len(tokens) - 1)
    head = output_head(model)
    with torch.inference_mode(), reading(head) as read:
        model(input_ids=torch.tensor([tokens]))
    expected = read[0][0][[end - 1 for end in ends]]
    assert torch.allclose(torch.stack(witness.states), expected, atol=1e-4)


def test_a_plain_answer_hooks_nothing_and_shows_no_states():
    model = tiny_model("llama")
    target, hooked = TransformersTarget(model), []
    head = output_head(model)
    head.register_forward_hook(lambda *_: hooked.append(len(head._forward_pre_hooks)))
    try:
        for step in decode(target, RandomTrees(0, VOCAB), PROMPT, max_new_tokens=4):
            with pytest.raises(RuntimeError, match="does not provide"):
                step.scores.hidden([0])
        assert set(hooked) == {0}
        list(decode(target, Witness(0, VOCAB), PROMPT, max_new_tokens=4))
        assert set(hooked) == {0, 1}
        list(decode(target, None, PROMPT, max_new_tokens=4))
        assert hooked[-1] == 0
    finally:
        head._forward_hooks.clear()


def test_targets_that_share_a_model_in_several_threads_read_their_own_states():
    model, answers = tiny_model("llama"), {}

    def run(seed: int) -> None:
        witness = Witness(seed, VOCAB)
        list(decode(TransformersTarget(model), witness, [seed, *PROMPT], max_new_tokens=40))
        answers.setdefault(seed, []).append(torch.stack(witness.states))

    for seed in range(4):
        run(seed)
    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(*pair) for pair in answers.values())
    assert not output_head(model)._forward_pre_hooks
