"""What the server adds to the library's time, and whether it keeps its promises under load.

Starts ``foretoken serve`` in a process of its own, with the bundled model, exact, on this machine alone.

    python -m benchmarks.serve                                            # all of it
    python -m benchmarks.serve --only load --clients 32 --seconds 300     # the load and the kill alone

Prints
- the milliseconds a step and until the first token that a client waits longer than a caller of the library, in turns;
- how fast a load of several clients is answered with drafting and without, in turns, by kind of text, and how fast the
  library answers the same questions one by one, by processor time;
- what reading a long prompt takes in one piece, in the server's blocks, and where its first block was kept;
- for a load in which a tenth of the requests is dropped in the middle and a tenth is malformed: how many answers were
  the library's for their seed, how many were not, and how the server's memory has grown;
- whether the history has every answer that was given before the server was killed.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import httpx2 as httpx
import typer

from benchmarks.common import RESULTS, SEED, Out, Rounds, finish, run
from foretoken import LanguageModel, load
from foretoken.cli.console import err
from foretoken.cli.output import markdown_table
from foretoken.core.errors import RequestError
from foretoken.measure.differences import TextChanged
from foretoken.measure.prompts import bundled_prompts
from foretoken.memory.history import History
from foretoken.memory.prefixes import Prefixes

TOKENS = 64
PER_KIND = 2
PER_CLIENT = 2  # times that each question is asked in a turn
PATIENCE = 120.0  # seconds that a client waits for anything
MALFORMED = [b"{", b"[]", b'{"model": "tiny"}', b'{"model": "tiny", "prompt": "a", "temperature": NaN}', b"[" * 50_000]

PARTS = ("added", "kinds", "turn", "load")
Only = Annotated[str | None, typer.Option(help=f"Measure only one of: {', '.join(PARTS)}.")]
Clients = Annotated[int, typer.Option(min=1, help="Clients at once.")]
Seconds = Annotated[float, typer.Option(min=1.0, max=600.0, help="Seconds of the load with dropped requests.")]


@dataclass(frozen=True)
class Question:
    """What a client asks, and the library's text for it."""

    kind: str
    body: dict[str, Any]
    text: str


def main(
    clients: Clients = 8,
    seconds: Seconds = 60.0,
    rounds: Rounds = 3,
    only: Only = None,
    dtype: Annotated[str, typer.Option(help="Of the model.")] = "auto",
    out: Out = RESULTS / "serve.json",
) -> None:
    """Measure the server beside the library."""
    if only not in (None, *PARTS):
        raise RequestError(f"--only is {only!r}: give one of {', '.join(PARTS)}.")
    lm = load("tiny", dtype=dtype, exact=True)
    lm.engine.settle_threads()
    assert lm.drafter is not None
    lm.drafter.prepare()
    lm.memories.wait()
    questions = asked_of(lm)
    told: dict[str, list[dict[str, Any]]] = {}
    with serving("--dtype", dtype) as url:
        if only in (None, "added"):
            told["added"] = beyond_the_library(lm, url, questions, rounds)
            err.print(markdown_table(told["added"]))
        if only in (None, "kinds"):
            told["kinds"] = drafted_and_plain(lm, url, questions, clients, rounds)
            err.print(markdown_table(told["kinds"]))
        if only in (None, "turn"):
            told["turn"] = [next_turn(lm, rounds)]
            err.print(markdown_table(told["turn"]))
        if only in (None, "load"):
            told["load"] = [asyncio.run(under_load(url, questions, clients, seconds))]
    if only in (None, "load"):
        with tempfile.TemporaryDirectory() as folder:
            told["history"] = [asyncio.run(killed(Path(folder) / "history.sqlite", dtype, questions, clients))]
    finish(out, told, *told.values())
    for load_told, kept in zip(told.get("load", []), told.get("history", []), strict=True):
        if load_told["other text"] or load_told["lost"] or not kept["intact"]:
            raise TextChanged("An answer of the server was lost, or was not the library's.")


def asked_of(lm: LanguageModel) -> list[Question]:
    """Questions of every kind, each answered by the library first; those with short answers are left out."""
    taken: Counter[str] = Counter()
    questions: list[Question] = []
    for row in map(json.loads, bundled_prompts().splitlines()):
        if taken[row["kind"]] == PER_KIND:
            continue
        body = {"model": "tiny", "prompt": row["prompt"], "max_tokens": TOKENS, "temperature": 0.8}
        body |= {"seed": SEED + len(questions)}
        options: Any = {"temperature": 0.8, "seed": body["seed"], "max_new_tokens": TOKENS, "drafter": "none"}
        answer = lm.generate(row["prompt"], **options)
        if len(answer.tokens) == TOKENS:
            taken[row["kind"]] += 1
            questions.append(Question(row["kind"], body, answer.text))
    return questions


@contextmanager
def serving(*options: str, killed: bool = False) -> Iterator[str]:
    """The address of a server that runs in a process of its own until the block ends.

    Args:
        options: More options of the command.
        killed: Whether it ends by SIGKILL, in the middle of whatever it does.
    """
    command = ["-m", "foretoken", "serve", "tiny", "--exact", "on", "--port", "0", *options]
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = next(found for line in process.stderr if (found := re.search(r"answers at (\S+)/v1", line)))
        yield address[1]
    finally:
        process.send_signal(signal.SIGKILL if killed else signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert killed or process.returncode == 0


def beyond_the_library(lm: LanguageModel, url: str, questions: Sequence[Question], rounds: int) -> list[dict[str, Any]]:
    """How much longer a client waits than a caller of the library, in turns, and how much more the processor does.

    Whatever else the machine does only adds to a time, so that short ones are compared: the first decile of the times
    between two steps, and the least time to the first token of each question. Processor time is that of the server's
    process, all threads and whole requests, less the library's for the same answers. Each gives every answer once
    before, as its first ones load and compile what later ones have.
    """
    rows = []
    for drafter in ("none", "mixed"):
        with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
            for question in questions:
                of_library(lm, question, drafter)
                of_server(client, question, drafter)
        ours: dict[str, list[Times]] = {question.text: [] for question in questions}
        theirs: dict[str, list[Times]] = {question.text: [] for question in questions}
        library_cpu, server_cpu = 0.0, -cpu_seconds(url)
        with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
            for _ in range(rounds):
                for question in questions:
                    library_cpu -= time.process_time()
                    ours[question.text].append(of_library(lm, question, drafter))
                    library_cpu += time.process_time()
                    theirs[question.text].append(of_server(client, question, drafter))
        server_cpu += cpu_seconds(url)
        num_tokens = sum(one.num_tokens for some in ours.values() for one in some)
        rows.append(
            {
                "drafter": drafter,
                "tokens": num_tokens,
                "library, ms a step": short_step(ours),
                "added, ms a step": short_step(theirs) - short_step(ours),
                "library, CPU ms a token": 1000 * library_cpu / num_tokens,
                "added, CPU ms a token": 1000 * (server_cpu - library_cpu) / num_tokens,
                "library, ms to first": statistics.median(map(least_first, ours.values())),
                "added, ms to first": statistics.median(
                    least_first(theirs[text]) - least_first(some) for text, some in ours.items()
                ),
            }
        )
    return rows


@dataclass(frozen=True)
class Times:
    """When the parts of an answer came, in seconds: the first after the question, each further one after the last."""

    first: float
    steps: list[float]
    num_tokens: int


def short_step(answers: dict[str, list[Times]]) -> float:
    """The first decile of the milliseconds between two parts."""
    steps = [step for some in answers.values() for one in some for step in one.steps]
    return 1000 * statistics.quantiles(steps, n=10)[0]


def least_first(answers: Sequence[Times]) -> float:
    """The least milliseconds until the first part."""
    return 1000 * min(one.first for one in answers)


def process_metric(text: str, name: str) -> float:
    """A number of the server's process."""
    found = re.search(rf"^process_{name} (\S+)", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def of_library(lm: LanguageModel, question: Question, drafter: str) -> Times:
    """An answer of the library, which is the question's text."""
    body = question.body
    options: Any = {name: body[name] for name in ("temperature", "seed")}
    moments, text = [time.perf_counter()], ""
    stream = lm.stream(body["prompt"], max_new_tokens=TOKENS, drafter=drafter, namespace=None, **options)
    for _, chunks in stream.steps():
        said = "".join(chunk.text for chunk in chunks)
        if said:
            moments.append(time.perf_counter())
            text += said
    assert text == question.text
    first, *steps = (after - before for before, after in pairwise(moments))
    return Times(first, steps, stream.stats.tokens)


def of_server(client: httpx.Client, question: Question, drafter: str) -> Times:
    """The same, as a client sees it."""
    body = question.body | {"stream": True, "foretoken": {"drafter": drafter, "namespace": None}}
    moments, text, num_tokens = [time.perf_counter()], "", 0
    with client.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                if chunk["choices"][0]["text"]:
                    moments.append(time.perf_counter())
                    text += chunk["choices"][0]["text"]
                num_tokens += chunk["foretoken"].get("tokens", 0)
    assert text == question.text
    first, *steps = (after - before for before, after in pairwise(moments))
    return Times(first, steps, num_tokens)


def drafted_and_plain(
    lm: LanguageModel, url: str, questions: Sequence[Question], clients: int, rounds: int
) -> list[dict[str, Any]]:
    """How much faster a load is answered with drafting than without, by kind of text: medians over turns."""
    rows = []
    for kind in dict.fromkeys(question.kind for question in questions):
        some = [question for question in questions if question.kind == kind] * PER_CLIENT
        turns = []
        for _ in range(rounds):
            plain, drafted = (answering(url, some, clients, drafter) for drafter in ("none", "mixed"))
            alone = [by_the_library(lm, some, drafter) for drafter in ("none", "mixed")]
            turns.append((plain[0] / drafted[0], plain[1] / drafted[1], alone[0] / alone[1]))
        wall, cpu, library = (statistics.median(speeds) for speeds in zip(*turns, strict=True))
        speeds = {"speed": wall, "speed by CPU time": cpu, "library, by CPU time": library}
        rows.append({"kind": kind, "clients": clients, "answers": len(some)} | speeds)
    return rows


def next_turn(lm: LanguageModel, rounds: int) -> dict[str, Any]:
    """Milliseconds of the processor until the first token after a long prompt, the least of some turns."""
    prompt = "The ship left the harbour at dawn, and nobody on the pier had a word to say of it. " * 33
    num_tokens = len(lm.encode(prompt))
    kept = Prefixes(2**28)
    ways = {"in one piece": None, "in blocks": Prefixes(0), "first block kept": kept}
    least = dict.fromkeys(ways, math.inf)
    for _ in range(1 + rounds):  # the first turn keeps the block, and compiles
        for way, prefixes in ways.items():
            lm.prefixes = prefixes
            started = time.process_time()
            lm.generate(prompt, max_new_tokens=1, drafter="none")
            least[way] = min(least[way], time.process_time() - started)
    lm.prefixes = None
    assert kept.num_hits, "the prompt is longer than a block"
    return {"tokens": num_tokens} | {way: 1000 * seconds for way, seconds in least.items()}


def by_the_library(lm: LanguageModel, questions: Sequence[Question], drafter: str) -> float:
    """Seconds of the processor in which the library answers all questions."""
    started = time.process_time()
    for question in questions:
        of_library(lm, question, drafter)
    return time.process_time() - started


def answering(url: str, questions: Sequence[Question], clients: int, drafter: str) -> tuple[float, float]:
    """What it takes to answer all questions: seconds, and seconds of the server's processor."""
    cpu = -cpu_seconds(url)
    began = time.perf_counter()
    asyncio.run(all_answered(url, questions, clients, drafter))
    return time.perf_counter() - began, cpu + cpu_seconds(url)


def cpu_seconds(url: str) -> float:
    """Seconds of all threads of the server's process."""
    return process_metric(httpx.get(f"{url}/metrics", timeout=PATIENCE, trust_env=False).text, "cpu_seconds_total")


async def all_answered(url: str, questions: Sequence[Question], clients: int, drafter: str) -> None:
    """Answer all questions, so many at once, and compare each text."""
    drafting = {"drafter": drafter, "namespace": None}
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, trust_env=False) as client:

        async def ask(some: Sequence[Question]) -> None:
            for question in some:
                answer = await client.post("/v1/completions", json=question.body | {"foretoken": drafting})
                if answer.json()["choices"][0]["text"] != question.text:
                    raise TextChanged(f"The {drafter} answer to a {question.kind} question is not the library's.")

        await asyncio.gather(*(ask(questions[place::clients]) for place in range(clients)))


async def under_load(url: str, questions: Sequence[Question], clients: int, seconds: float) -> dict[str, Any]:
    """Ask at random from several clients; a tenth is dropped, a tenth malformed. What came of it."""
    counts: Counter[str] = Counter()
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, trust_env=False) as client:
        for question in questions:  # memory is looked at once every namespace and every shape was there
            await client.post("/v1/completions", json=question.body)
        before = await resident(client)
        ends_at = time.monotonic() + seconds

        async def one(rng: random.Random) -> None:
            while time.monotonic() < ends_at:
                what = rng.random()
                if what < 0.1:
                    await malformed(client, rng, counts)
                else:
                    await asked(client, rng.choice(questions), rng.random() if what < 0.2 else None, counts)

        await asyncio.gather(*(one(random.Random(place)) for place in range(clients)))
        while (await client.get("/health")).json()["running"]:
            await asyncio.sleep(0.1)
        after = await resident(client)
    names = (
        "the library's text",
        "other text",
        "lost",
        "dropped",
        "malformed and refused",
        "malformed and taken",
    )
    told: dict[str, Any] = {"clients": clients, "seconds": seconds} | {name: counts[name] for name in names}
    return told | {"resident_mib_before": before, "resident_mib_after": after}


async def malformed(client: httpx.AsyncClient, rng: random.Random, counts: Counter[str]) -> None:
    """Send what is no request."""
    headers = {"content-type": "application/json"}
    answer = await client.post("/v1/completions", content=rng.choice(MALFORMED), headers=headers)
    is_refused = answer.status_code == 400 and "error" in answer.json()
    counts["malformed and refused" if is_refused else "malformed and taken"] += 1


async def asked(client: httpx.AsyncClient, question: Question, leaves: float | None, counts: Counter[str]) -> None:
    """Ask and compare, or leave in the middle."""
    try:
        async with client.stream("POST", "/v1/completions", json=question.body | {"stream": True}) as answer:
            text = ""
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                if leaves is not None and len(text) > leaves * len(question.text):
                    counts["dropped"] += 1
                    return
            counts["the library's text" if text == question.text else "other text"] += 1
    except (httpx.HTTPError, KeyError):
        counts["lost"] += 1


async def resident(client: httpx.AsyncClient) -> float:
    """MiB of the server's memory."""
    return process_metric((await client.get("/metrics")).text, "resident_memory_bytes") / 2**20


async def killed(history: Path, dtype: str, questions: Sequence[Question], clients: int) -> dict[str, Any]:
    """Kill a server with a history while it answers; whether another finds every answer that was given."""
    given = 0
    options = "--history", str(history), "--dtype", dtype
    with serving(*options, killed=True) as url:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, trust_env=False) as client:

            async def ask(question: Question) -> None:
                nonlocal given
                await client.post("/v1/completions", json=question.body)
                given += 1

            tasks = [asyncio.create_task(ask(question)) for question in list(questions) * 4]
            while given < len(questions):
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
    with History(history) as kept:
        found = sum(row.answers for row in kept.stats())
    with serving(*options) as url:
        await all_answered(url, questions, clients, "mixed")
    with History(history) as kept:
        again = sum(row.answers for row in kept.stats())
    return {"given before the kill": given, "kept": found, "intact": found >= given and again >= found}


if __name__ == "__main__":
    run(main)
