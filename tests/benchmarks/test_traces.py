"""ANPD on recorded answers of real models, beside a second implementation; run with --data FOLDER."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest

from foretoken.drafters import Anpd
from foretoken.replay.job import Job, run_job
from foretoken.replay.read import Reading, Trace, read_log


def steps_by_hand(traces: Sequence[Trace], max_order: int, budget: int) -> tuple[int, int]:
    """(tokens, steps) of the paper's method in one loop, sharing no code with the package."""
    tokens = steps = 0
    for trace in traces:
        text, counts, recent = [], defaultdict(lambda: defaultdict(int)), {}

        def say(token, text=text, counts=counts, recent=recent):
            for n in range(1, max_order):
                if len(text) >= n:
                    gram = tuple(text[-n:])
                    counts[gram][token] += 1
                    recent[gram, token] = len(text)
            text.append(token)

        for token in trace.prompt:
            say(token)
        say(trace.record[0])
        done = 1
        while done < len(trace.record):
            guess, context = [], text[-max_order:]
            while len(guess) < min(budget, len(trace.record) - done - 1):
                for n in range(max_order - 1, 0, -1):
                    gram = tuple(context[-n:])
                    if len(context) >= n and gram in counts:
                        break
                else:
                    break
                best = max(counts[gram], key=lambda token: (counts[gram][token], recent[gram, token]))
                guess.append(best)
                context.append(best)
            right = 0
            while right < len(guess) and guess[right] == trace.record[done + right]:
                right += 1
            for token in trace.record[done : done + right + 1]:
                say(token)
            done += right + 1
            steps += 1
        tokens += len(trace.record)
    return tokens, steps


def test_acceptance_is_that_of_a_second_implementation(pytestconfig):
    data = pytestconfig.getoption("--data")
    if data is None or not (data / "traces").is_dir():
        pytest.skip("no recorded answers: give their folder with --data")
    reading = Reading(str(data / "tokenizers" / "qwen2_tokenizer.json.gz"), limit=6)
    for path in sorted((data / "traces").glob("*.jsonl.gz")):
        row = run_job(Job(str(path), path.name, "anpd", Anpd(), 10, True, reading)).row()
        traces = read_log(str(path), reading).traces
        assert (row["tokens"], row["steps"]) == steps_by_hand(traces, 5, 10), path.name
