"""The three doors of Foretoken: text in and text out, the hook of transformers' generate, and decode().

python examples/three_doors.py [a model folder or a hub name]
"""

import sys
from pathlib import Path

import torch
from transformers import PreTrainedModel

import foretoken
from foretoken.drafters import AdaptiveNgram
from foretoken.engines.transformers.positions import context_length
from foretoken.engines.transformers.target import TransformersTarget

MODEL = sys.argv[1] if len(sys.argv) > 1 else "tiny"
PROMPT = (Path(__file__).parent / "prompts" / "module.py").read_text(encoding="utf-8")
NEW_TOKENS = 60


def text_in_text_out() -> foretoken.LanguageModel:
    """Door 1: a model by its name; the prompt is a string or a list of messages."""
    lm = foretoken.load(MODEL, dtype="float32", history=False)  # an example leaves nothing behind

    result = lm.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    stats = result.stats
    print(result.text)
    print(f"-- {stats.tokens} tokens in {stats.steps} steps, {stats.acceptance_length:.2f} a step\n")

    # The seed decides the text under sampling; the drafter does not.
    sampled = lm.stream(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0.8, seed=5)
    for chunk in sampled:
        print(chunk.text, end="", flush=True)
    plain = lm.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0.8, seed=5, drafter="none")
    assert sampled.result.tokens == plain.tokens
    print(f"\n-- sampled with seed 5, {plain.stats.steps} steps plain, {sampled.result.stats.steps} drafted\n")
    return lm


def one_argument_more(lm: foretoken.LanguageModel) -> None:
    """Door 2: a script that calls ``model.generate`` already."""
    model, tokenizer = lm.model, lm.tokenizer  # as AutoModelForCausalLM and AutoTokenizer load them
    inputs = tokenizer(PROMPT, return_tensors="pt").to(model.device)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}

    theirs = model.generate(**inputs, **options)
    stats = foretoken.DecodeStats()
    ours = model.generate(**inputs, **options, custom_generate=foretoken.generate, stats=stats)
    assert torch.equal(ours, theirs)
    print(f"-- model.generate: the same {stats.tokens} tokens, in {stats.steps} steps\n")


def your_own_parts(model: PreTrainedModel, tokenizer) -> None:
    """Door 3: the loop itself, for your own target, drafter, budget or rule; it knows only token ids."""
    target = TransformersTarget(model, max_length=context_length(model))
    drafter = AdaptiveNgram(max_order=4)
    stats = foretoken.DecodeStats()
    for step in foretoken.decode(
        target,
        drafter,
        tokenizer(PROMPT)["input_ids"],
        max_new_tokens=NEW_TOKENS,
        stop_tokens={tokenizer.eos_token_id},
        budget=foretoken.FixedBudget(4),
    ):
        stats.add(step)
        accepted, own = step.tokens[: step.num_accepted], step.tokens[step.num_accepted :]
        print(f"drafted {len(step.draft)}, accepted {tokenizer.decode(accepted)!r}, own {tokenizer.decode(own)!r}")
    print(f"-- decode: {stats.tokens} tokens in {stats.steps} steps, {stats.acceptance_rate:.0%} of drafts accepted")


if __name__ == "__main__":
    lm = text_in_text_out()
    one_argument_more(lm)
    your_own_parts(lm.model, lm.tokenizer)
