"""Learn the phrases of the background corpus that comes with the package, from recorded answers of language models.

    python scripts/make_background.py ANSWERS.jsonl.xz --without TRACES --out src/foretoken/corpus/general.txt.xz

ANSWERS has a ``model``, ``prompt`` and ``output`` in each row. Only answers of models whose weights have a permissive
licence are learned from, and none whose prompt shares a line of its own with a prompt in TRACES, so that drafting can
be measured there with the corpus. What is kept is no answer but the phrases that occur in more than one of them: each
run of words whose every four in a row were said elsewhere too, and any four at most four times. They are written as
they were said, since each model's own tokenizer will cut them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Apache-2.0 or MIT, by the name that the answers' own records use.
PERMISSIVE = {
    "Qwen2.5-14B-Instruct": "Apache-2.0",
    "Qwen2.5-7B-Instruct": "Apache-2.0",
    "Qwen2.5-Math-7B": "Apache-2.0",
    "Qwen2-7B-Instruct": "Apache-2.0",
    "Qwen/Qwen2.5-Coder-32B-Instruct": "Apache-2.0",
    "Sky-T1-math-correct-5K-32B-short-ckpts": "Apache-2.0",
    "Sky-T1-math-reflection-1.0-32B": "Apache-2.0",
    "Phi-3.5-mini-instruct": "MIT",
    "Phi-3-mini-4k-instruct-fp16": "MIT",
    "microsoft-Phi-3-mini-4k-instruct-fp16": "MIT",
    "microsoft-Phi-3-small-8k-instruct-fp16": "MIT",
    "microsoft-Phi-3-medium-4k-instruct-fp16": "MIT",
    "falcon-40b": "Apache-2.0",
    "falcon-40b-sft-mix-1226": "Apache-2.0",
    "falcon-40b-sft-top1-560": "Apache-2.0",
    "falcon-7b-sft-top1-696": "Apache-2.0",
    "falcon-7b-sft-mix-2000": "Apache-2.0",
    "Mistral-7B-Instruct-v0.1": "Apache-2.0",
    "Mixtral-8x7B-Instruct-v0.1": "Apache-2.0",
    "Mistral-Nemo-Instruct-2407": "Apache-2.0",
    "openchat_3.5": "Apache-2.0",
    "01-ai/Yi-1.5-34B-Chat": "Apache-2.0",
    "01-ai/Yi-1.5-6B-Chat": "Apache-2.0",
    "01-ai/Yi-Coder-9B-Chat": "Apache-2.0",
    "01-ai/Yi-Coder-1.5B-Chat": "Apache-2.0",
    "ibm-granite/granite-3.1-8b-instruct": "Apache-2.0",
    "ibm-granite/granite-34b-code-instruct": "Apache-2.0",
    "ibm-granite/granite-3.0-2b-instruct": "Apache-2.0",
    "ibm-granite/granite-3.0-8b-instruct": "Apache-2.0",
    "ibm-granite-granite-8b-code-instruct-nf4": "Apache-2.0",
    "ibm-granite-granite-3b-code-instruct-nf4": "Apache-2.0",
}
MIN_LINE = 40  # shorter lines say nothing of what is asked
MAX_PROMPTS = 100  # a line in more prompts than this belongs to a template

PIECE = re.compile(r" ?\w+|\s+(?=\S)| ?[^\w\s]|\s+")
LENGTH = 4  # pieces in a row
MIN_ANSWERS = 2  # that said them
MAX_TIMES = 4  # that they are written


def phrases_of(answers: list[str]) -> Iterator[str]:
    """The phrases that more than one answer used, in the order of the answers."""
    said: Counter[tuple[str, ...]] = Counter()
    for answer in answers:
        said.update(set(runs(PIECE.findall(answer))))
    written: Counter[tuple[str, ...]] = Counter()
    for answer in answers:
        pieces = PIECE.findall(answer)
        end, phrase = 0, ""
        for start, run in enumerate(runs(pieces)):
            if said[run] < MIN_ANSWERS or written[run] == MAX_TIMES:
                continue
            written[run] += 1
            if start > end:
                if phrase:
                    yield phrase
                end, phrase = start, ""
            phrase += "".join(pieces[end : start + LENGTH])
            end = start + LENGTH
        if phrase:
            yield phrase


def runs(pieces: list[str]) -> list[tuple[str, ...]]:
    return [tuple(pieces[i : i + LENGTH]) for i in range(len(pieces) - LENGTH + 1)]


def lines_of(prompt: Any) -> set[str]:
    """The long lines of a prompt, without case and punctuation."""
    text = prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)
    lines = {re.sub(r"\W+", " ", line).strip().lower() for line in text.splitlines()}
    return {line for line in lines if len(line) >= MIN_LINE}


def rows(path: Path) -> Iterator[dict]:
    with (lzma.open if path.suffix == ".xz" else gzip.open)(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("answers", type=Path)
    parser.add_argument("--without", type=Path, required=True, help="a folder of *.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    seen_lines: Counter[str] = Counter()
    seen_answers = set()
    for path in sorted(arguments.without.glob("*.jsonl.gz")):
        for row in rows(path):
            seen_lines.update(lines_of(row["prompt"]))
            seen_answers.add(row["output"][:150])

    answers = []
    characters: Counter[str] = Counter()
    for row in rows(arguments.answers):
        asked_there = any(0 < seen_lines[line] <= MAX_PROMPTS for line in lines_of(row["prompt"]))
        if row["model"] in PERMISSIVE and not asked_there and row["output"][:150] not in seen_answers:
            answers.append(row["output"])
            characters[row["model"]] += len(row["output"])
    phrases = list(phrases_of(answers))
    arguments.out.write_bytes(lzma.compress("\0".join(phrases).encode(), preset=9))
    for model, number in characters.most_common():
        print(f"{model}: {number / 1000:.0f} thousand characters, {PERMISSIVE[model]}")
    print(
        f"learned from {sum(characters.values()) / 1e6:.1f} million characters: {len(phrases)} phrases of "
        f"{sum(map(len, phrases)) / 1e6:.1f} million, {arguments.out.stat().st_size / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
