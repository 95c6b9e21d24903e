"""Speculative decoding from scratch: the idea of Foretoken in one file, which imports none of it.

A large model spends most of a forward on reading its weights, so it scores eight tokens almost as fast as one.
Guess the next tokens by looking up the last few earlier in the text, score all guesses in one forward, and keep them as
far as they are what the model itself says. The text is that of plain greedy decoding; the forwards are fewer.

    python examples/minimal.py [folder of a Llama-like model]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

TINY = Path(__file__).parent.parent / "src" / "foretoken" / "models" / "tiny"
PROMPT = (Path(__file__).parent / "prompts" / "pattern.py").read_text(encoding="utf-8")
NEW_TOKENS = 120
MAX_GUESSES = 7
LONGEST_SUFFIX = 3


def look_up(context: list[int]) -> list[int]:
    """Guess what follows: find the last three tokens (then two, then one) earlier in the text, copy what came after."""
    for length in range(min(LONGEST_SUFFIX, len(context) - 1), 0, -1):
        suffix = context[-length:]
        for start in range(len(context) - length - 1, -1, -1):  # the most recent occurrence first
            if context[start : start + length] == suffix:
                return context[start + length : start + length + MAX_GUESSES]
    return []


@torch.inference_mode()
def forward(model, cache: DynamicCache, tokens: list[int]) -> list[int]:
    """Append tokens to the cache; what the model itself would say after each of them."""
    logits = model(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True).logits
    return logits[0].argmax(-1).tolist()


def plain(model, prompt: list[int], end_token: int) -> list[int]:
    """Greedy decoding as everybody does it: one token a forward."""
    cache = DynamicCache(config=model.config)
    answer = [forward(model, cache, prompt)[-1]]
    while len(answer) < NEW_TOKENS and answer[-1] != end_token:
        answer += forward(model, cache, answer[-1:])
    return answer


def drafted(model, prompt: list[int], end_token: int) -> tuple[list[int], int]:
    """The same answer, and the number of forwards after the prompt's."""
    cache = DynamicCache(config=model.config)
    answer = [forward(model, cache, prompt)[-1]]  # the prompt's forward gives the first token
    steps = 0
    while len(answer) < NEW_TOKENS and answer[-1] != end_token:
        # Propose. The forward below adds a token of its own, so the last place of the answer needs no guess.
        guesses = look_up(prompt + answer)[: NEW_TOKENS - len(answer) - 1]

        # Score. The last token is not in the cache yet; it goes first, and each guess follows the one before.
        # said[i] is what the model says after the last token and i guesses, if those i guesses are right.
        said = forward(model, cache, [answer[-1], *guesses])
        steps += 1

        # Verify. A guess is right if the model says it there; behind a wrong guess nothing counts.
        num_right = 0
        while num_right < len(guesses) and guesses[num_right] == said[num_right]:
            num_right += 1

        # Keep. Only what the model said is added: the right guesses, and its own token in place of the first wrong one.
        # The cache forgets the wrong guesses, as if they had never been.
        cache.crop(num_right - len(guesses))  # a negative count drops that many; 0 drops none
        for token in said[: num_right + 1]:
            answer.append(token)
            if token == end_token:
                break
    return answer, steps


def main() -> None:
    """Answer one prompt both ways, and compare."""
    folder = sys.argv[1] if len(sys.argv) > 1 else str(TINY)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # In float32, since in half precision a forward over eight rows may round two nearly equal logits the other way.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = tokenizer(PROMPT)["input_ids"]

    answer, steps = drafted(model, prompt, tokenizer.eos_token_id)
    assert answer == plain(model, prompt, tokenizer.eos_token_id), "drafting changed the text"

    print(tokenizer.decode(answer))
    per_step = (len(answer) - 1) / max(steps, 1)
    print(f"\n{len(answer)} tokens in {steps} steps after the prompt: {per_step:.2f} tokens per step.")
    print("Plain greedy decoding gave the same tokens, one per step.")


if __name__ == "__main__":
    main()
