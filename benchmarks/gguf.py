"""What drafting gains on GGUF files, in CPU time: ours and llama-cpp-python's own prompt lookup, beside plain decoding.

    python -m benchmarks.gguf tiny-q8_0.gguf tiny-f32.gguf

One thread, so that the CPU time of this process is that of the answer. The bundled prompts are answered greedily and
sampled at 0.8, the methods in turns. Every drafted text is compared with the plain one of the same library. Prints, for
each file and kind of prompt, plain seconds over a method's, the tokens of a step, and how many texts were the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.progress import track

from benchmarks.common import RESULTS, SEED, Out, Rounds, finish, run
from foretoken import LanguageModel
from foretoken.engines.llama_cpp.engine import LlamaCppEngine
from foretoken.engines.transformers.loading import load_tokenizer
from foretoken.measure.prompts import Question, bundled_prompts, parse_prompts

CONTEXT = 2048
LOOKUP = "llama-cpp-python's lookup"
TEMPERATURES = (0.0, 0.8)


class Answer(NamedTuple):
    """An answer of one method.

    Args:
        tokens: What it says.
        seconds: CPU time, the prefill with it.
        steps: Forwards after the prefill. None if they were not counted.
    """

    tokens: Sequence[int]
    seconds: float
    steps: int | None = None


Method = Callable[[Question, float], Answer]


def main(
    files: Annotated[list[Path], typer.Argument(help="GGUF files.")],
    rounds: Rounds = 3,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts to take of each kind.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Of an answer.")] = 128,
    exact: Annotated[bool, typer.Option(help="Insist on exactness, whatever it costs.")] = False,
    out: Out = RESULTS / "gguf.json",
) -> None:
    """Measure what drafting gains on GGUF files."""
    tokenizer, rows = load_tokenizer("tiny"), list[dict[str, Any]]()
    questions = parse_prompts(bundled_prompts(), lambda text: tokenizer(text)["input_ids"], limit)
    for path in files:
        lm = LanguageModel(LlamaCppEngine(path, context=CONTEXT, threads=1, exact=exact or "auto"))
        lm.memories.wait()
        for temperature in TEMPERATURES:
            methods = {name: ours(lm, name, max_new_tokens) for name in ("none", "mixed", "ngram", "prompt-lookup")} | (
                theirs(path, max_new_tokens) if temperature == 0 else {}
            )
            rows += measured(path.name, questions, methods, temperature, rounds)
    finish(out, {"rows": rows}, rows, workload=bundled_prompts())


def ours(lm: LanguageModel, drafter: str, max_new_tokens: int) -> Method:
    """Our loop with one drafter, which remembers no answer."""

    def answer(question: Question, temperature: float) -> Answer:
        text = "".join(lm.engine.detokenizer([], False).push(token) for token in question.prompt)
        started = time.process_time()
        result = lm.generate(
            text, drafter=drafter, temperature=temperature, seed=SEED, max_new_tokens=max_new_tokens, namespace=None
        )
        return Answer(list(result.tokens), time.process_time() - started, result.stats.steps)

    return answer


def theirs(path: Path, max_new_tokens: int) -> dict[str, Method]:
    """llama-cpp-python's ``Llama``, plain and with its prompt lookup of ten tokens."""
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    how: dict[str, Any] = {"n_ctx": CONTEXT, "n_batch": CONTEXT, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    plain = Llama(str(path), **how)
    lookup = Llama(str(path), **how, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=10))

    def method(llama: Any) -> Method:
        def answer(question: Question, temperature: float) -> Answer:
            llama.reset()
            started, tokens = time.process_time(), list[int]()
            for token in llama.generate(list(question.prompt), temp=temperature, repeat_penalty=1.0):
                if token == llama.token_eos() or len(tokens) == max_new_tokens:
                    break
                tokens.append(token)
            return Answer(tokens, time.process_time() - started)

        return answer

    return {"llama-cpp-python": method(plain), LOOKUP: method(lookup)}


def measured(
    file: str, questions: Sequence[Question], methods: dict[str, Method], temperature: float, rounds: int
) -> Iterator[dict[str, Any]]:
    """A line for each method and kind of prompt. The first answers of all, which prepare things, do not count."""
    for method in methods.values():
        method(questions[0], temperature)
    answers: dict[tuple[str, str], list[Answer]] = {}  # by method and question
    for question in track(questions, f"{file} at {temperature}"):
        for _ in range(rounds):
            for name, method in methods.items():
                answers.setdefault((name, question.id), []).append(method(question, temperature))
    for kind in ("all", *dict.fromkeys(question.kind for question in questions)):
        asked = [question for question in questions if kind in ("all", question.kind)]
        for name in methods:
            if name == "none":
                continue
            base = "llama-cpp-python" if name == LOOKUP else "none"
            ratios, same, tokens, steps = [], 0, 0, 0
            for question in asked:
                own, plain = answers[name, question.id], answers["none", question.id]
                ratios.append(
                    statistics.median(one.seconds for one in plain) / statistics.median(one.seconds for one in own)
                )
                same += own[0].tokens == answers[base, question.id][0].tokens
                tokens += len(own[0].tokens)
                steps += own[0].steps or 0
            yield {
                "file": file,
                "temperature": temperature,
                "kind": kind,
                "method": name,
                "speed": float(np.exp(np.mean(np.log(ratios)))),
                "least": min(ratios),
                "tokens_per_step": tokens / steps if steps else None,
                "same_text": f"{same} of {len(asked)}",
            }


if __name__ == "__main__":
    run(main)
