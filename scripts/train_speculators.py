#!/usr/bin/env python
"""Train the speculators of the bundled model: an MLP speculator, then blockwise heads, then a rescorer for those.

Makes a data file of the documents that the model was trained on (see ``train_tiny.py``; its one in fifty stays held
out), then runs ``foretoken train``. The same command continues a run that was stopped.

    python scripts/train_speculators.py --books books.jsonl.xz --answers answers.jsonl.xz --work build/speculators
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from train_tiny import documents

from foretoken.training import checkpoint

# How often the documents of a kind come, so that code, edits, books and answers get 35, 15, 30 and 20 % of the tokens.
TIMES = {"code": 1.0, "edits": 0.6, "books": 0.35, "answers": 2.0}
HELD_OUT = 50  # one document in so many was held out from the model

RUNS = {
    "mlp-speculator": ["--heads", "4", "--inner-dim", "160", "--steps", "2500", "--own-steps", "7000"],
    "blockwise": ["--heads", "4", "--inner-dim", "256", "--steps", "1000", "--own-steps", "3000"],
    "rescorer": ["--inner-dim", "128", "--steps", "1200", "--own-steps", "1400"],
}
WHAT = {
    "rescorer": "A small language model that weighs what the blockwise heads of Foretoken's `tiny` guess, each guess "
    "after those before it (`refined-speculator:by=network`). It changes no answer."
}


def write_data(args: argparse.Namespace, path: Path) -> None:
    """Write the training documents as JSON lines, the kinds in turns."""
    lines: list[tuple[float, str]] = []
    for kind, texts in documents(args).items():
        trained = [text for i, text in enumerate(texts) if i % HELD_OUT]
        count = round(TIMES[kind] * len(trained))
        lines += [(i / count, trained[i % len(trained)]) for i in range(count)]
    lines.sort()
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps({"text": text}) + "\n" for _, text in lines), encoding="utf-8")
    part.replace(path)


def write_card(folder: Path, kind: str, options: list[str]) -> None:
    """Write the card of a speculator: what it is, what it learned from, and what it is worth."""
    state = checkpoint.load(folder / "work" / "checkpoint.pt")
    assert state is not None
    best = max(state["history"], key=lambda line: line["accepted_length"])
    top1 = ", ".join(f"{share:.3f}" for share in best["top1"])
    (folder / "README.md").write_text(
        f"""---
license: apache-2.0
tags: [speculative-decoding]
---

# {kind} of the bundled model

{WHAT.get(kind, "Heads that guess the next tokens of Foretoken's `tiny` from its states. They change no answer.")}

| | |
|---|---|
| accepted length | {best["accepted_length"]:.3f} tokens a step, a chain of every head's best guess |
| best guess right, by head | {top1}, given the true tokens before it |
| judged on | 32 texts of 256 tokens that the model generated after held-out prompts, temperature 1, top-k 10 |
| options | `{" ".join(options)}` |
| trained on | the documents of the model's card, none of those held out, and what the model wrote after their pieces |

Train it again with `scripts/train_speculators.py`.
""",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, help="JSON lines with a `text` each")
    parser.add_argument("--answers", type=Path, help="JSON lines with `model`, `prompt` and `output`")
    parser.add_argument("--answers-model", default="^falcon-", help="regular expression: whose answers may be used")
    parser.add_argument("--work", type=Path, default=Path("build/speculators"), help="data, checkpoints, results")
    parser.add_argument("--only-data", action="store_true", help="write the data file and stop")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    data = args.work / "data.jsonl"
    if not data.exists():
        write_data(args, data)
    if args.only_data:
        return
    for kind, options in RUNS.items():
        command = [sys.executable, "-m", "foretoken", "train", kind, "--base", "tiny", "--data", str(data)]
        command += ["--output", str(args.work / kind), "--work", str(args.work / "shared"), "--dtype", "float32"]
        command += ["--batch", "1024", "--judge-every", "200", "--html", str(args.work / f"{kind}.html")]
        command += options
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        write_card(args.work / kind, kind, options)


if __name__ == "__main__":
    main()
