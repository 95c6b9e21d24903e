"""Learn what the mixer of the n-gram core starts from, out of recorded answers.

    python scripts/learn_weights.py TRACES --tokenizer T --background STORE --out src/foretoken/drafters/weights.npz \
        [--model FOLDER ...]

TRACES is a folder of *.jsonl.gz; the first 24 answers of each file are left out, so that drafting can be measured on
them. Each run of 24 answers of a file begins with no earlier answers, as replay does. What is learned by every
committed token while drafting is learned here by every token, at a rate that falls from 0.02 to 0.002; once with the
background corpus and once without.

A recorded answer has no logits. What the successors that a target named are worth is learned after that, while the
bundled model continues prompts and answers of the same traces, and while small models, if some are given, answer
nothing but their first token (``convert_small_model.py`` makes their folders). What was learned from the traces stays.
"""

from __future__ import annotations

import argparse
import random
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper

import foretoken
from foretoken import FixedBudget, decode
from foretoken.core.contracts import Step
from foretoken.core.draft import Draft
from foretoken.drafters.ngram import NgramMixer
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.loading import load_model
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.memory.corpus.general import general_background
from foretoken.memory.fingerprint import fingerprint
from foretoken.ngrams.arrays import CHOICES, KEYS, ORDERS, PROB, RECYCLED, ROW, SEEN, SETS, SLOTS, STRENGTHS, Weights
from foretoken.ngrams.background import Background
from foretoken.ngrams.shared import SharedNgrams, sets_of, table_of, untrained_weights
from foretoken.replay.read import Reading, Trace, read_traces
from foretoken.tokenizing import batch_encoder, load_tokenizer

RUN = 24  # answers that share a history
MAX_RUNS = 120  # of a file
FIRST_RATE, LAST_RATE = 0.02, 0.002
NAMED_RATE = 0.01  # at first, of what is learned after all else
SEED = 0
CONTINUED = 240  # texts of the traces that the bundled model continues
OF_SMALL_MODELS = 40  # answers of each
NEW_TOKENS, MAX_PROMPT = 160, 400
ALONE = 4  # answers that share a memory
DRAFTED, FLOOR = FixedBudget(24), 0.01
TEMPERATURES = (0.0, 0.3, 0.6, 0.8, 1.0)


Asked = tuple[TransformersTarget, list[int]]  # who is to continue what


def step_of(record: array[int]) -> Step:
    """A recorded answer, as if it were one step."""
    return Step(Draft(), tuple(record), finish_reason="stop")


def runs_of(folder: Path, tokenizer: str) -> list[list[Trace]]:
    """Runs of consecutive answers of all files, in random order."""
    encode = batch_encoder(load_tokenizer(tokenizer))
    runs = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        traces = read_traces(path, encode, Reading(tokenizer, limit=(MAX_RUNS + 1) * RUN)).traces
        runs += [traces[start : start + RUN] for start in range(RUN, len(traces), RUN)]
        print(f"{path.name}: {max(0, len(traces) - RUN)} answers", flush=True)
    random.Random(SEED).shuffle(runs)
    return runs


def learn(runs: list[list[Trace]], background: Background | None) -> Weights:
    """What the mixer knows after all runs."""
    weights = untrained_weights()
    for i, run in enumerate(runs):
        rate = FIRST_RATE * (LAST_RATE / FIRST_RATE) ** (i / len(runs))
        memory = SharedNgrams(background, weights=weights)
        drafter = NgramMixer(memory, rate=rate)
        for trace in run:
            drafter.begin(trace.prompt)
            drafter.observe(step_of(trace.record))
            memory.add(trace.record)
    return weights


def learn_what_is_named(weights: Weights, asked: list[Asked], background: Background | None) -> None:
    """Learn what successors that targets named are worth; what is known of all other votes stays as it is."""
    sets, table = sets_of(weights.own), table_of(weights.own)
    here = weights.own[:CHOICES].reshape(-1, 4, ROW)
    own = weights.own[CHOICES : SETS - 1].reshape(-1, 4, ROW)
    for some in (here, own):
        some[:, 1:] = some[:, :1]  # where something was named the other votes mean about the same
    common, before = sets[-1].copy(), table.copy()
    memory = SharedNgrams(background, weights=weights)
    for i, (target, prompt) in enumerate(asked):
        if i % ALONE == 0:
            memory = SharedNgrams(background, weights=weights)
        rate = NAMED_RATE * (LAST_RATE / NAMED_RATE) ** (i / len(asked))
        drafter = NgramMixer(memory, floor=FLOOR, rate=rate, recycle=True)
        steps = decode(target, drafter, prompt, max_new_tokens=NEW_TOKENS, budget=DRAFTED)
        memory.add([token for step in steps for token in step.tokens])
    # The weights that all share have moved: where something was named, that goes into the others.
    here[:, 1:, :SLOTS] += sets[-1] - common
    sets[-1] = common
    others = np.arange(KEYS) // (ORDERS * STRENGTHS) != RECYCLED
    table[others] = before[others]


def questions(runs: list[list[Trace]], tokenizer: str, models: list[Path]) -> Iterator[Asked]:
    """Targets and the prompts that they are to continue."""
    chance = random.Random(SEED)
    lm = foretoken.load("tiny", dtype="float32", device="cpu", background=None, history=False)
    decoder = load_tokenizer(tokenizer)
    traces = [trace for run in runs for trace in run]
    for i in range(CONTINUED):
        trace = chance.choice(traces)
        if i % 3:
            text = decoder.decode([*trace.prompt[-MAX_PROMPT:], *trace.record[: chance.choice([0, 50])]])
        else:  # to be copied, as the bundled model has learned it
            text = decoder.decode(trace.record[:200])
            text = f"# Before:\n{text}\n\n# After:\n{text[: len(text) // 8]}"
        prompt = lm.encode(text)[-MAX_PROMPT:]
        if prompt:
            yield TransformersTarget(lm.model, choice_at(TEMPERATURES[i % len(TEMPERATURES)], i)), prompt
    for folder in models:
        model = load_model(str(folder), "float32", "cpu")
        for i in range(OF_SMALL_MODELS):
            yield TransformersTarget(model, choice_at(chance.uniform(0.3, 1.0), i)), [1]


def choice_at(temperature: float, seed: int) -> Choice:
    if temperature == 0:
        return Choice()
    return Choice(LogitsProcessorList([TemperatureLogitsWarper(temperature)]), seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("traces", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--background", type=Path, required=True)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    runs = runs_of(arguments.traces, arguments.tokenizer)
    learned = {"alone": learn(runs, None), "background": learn(runs, Background.open(arguments.background))}
    asked = list(questions(runs, arguments.tokenizer, arguments.model))
    random.Random(SEED).shuffle(asked)
    learn_what_is_named(learned["alone"], asked, None)
    # The corpus of the traces' tokenizer says nothing in the bundled model's tokens: it has its own.
    tiny = load_tokenizer("tiny")
    general = general_background(batch_encoder(tiny), fingerprint(tiny))
    learn_what_is_named(
        learned["background"], [one for one in asked if one[0].model.config.vocab_size == 4096], general
    )
    arrays = {}
    for name, weights in learned.items():
        table = table_of(weights.own)
        arrays[f"{name}_prob"] = table[:, PROB]
        arrays[f"{name}_seen"] = np.minimum(table[:, SEEN], 1e4).astype(np.float16)
        arrays[f"{name}_weight"] = sets_of(weights.own).astype(np.float16)
    np.savez_compressed(arguments.out, allow_pickle=False, **arrays)
    print(f"learned from {sum(map(len, runs))} answers: {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
