"""``foretoken bench``: what drafting gains on a model and a machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from foretoken.cli.console import err, out, plain
from foretoken.cli.input import background_folder, read_exact, read_from, silence_transformers
from foretoken.cli.options import Background, Device, Dtype, ExactOption, HtmlFile, Model, Speculator, of_model
from foretoken.cli.output import check_outputs, markdown_table, write_quietly, write_text
from foretoken.core.errors import RequestError
from foretoken.engines import ENGINES, engine_module
from foretoken.engines.base import FOUND, Engine, Exact
from foretoken.texts import read_text

if TYPE_CHECKING:
    from foretoken.measure.measured_model import Measured, MeasuredEngine, MeasuredModel
    from foretoken.measure.speculator import Analysis

MAX_COST_SECONDS = 30.0  # of measuring what rows cost

app = typer.Typer(no_args_is_help=True)

Prompts = Annotated[
    Path | None, typer.Option(help='JSON lines with "id", "kind" and "prompt".', show_default="the 36 in the package")
]
Limit = Annotated[int | None, typer.Option(help="Prompts to take of each kind.", show_default="all")]
Temperatures = Annotated[
    list[float] | None,
    typer.Option(help="0 decodes greedily, a number above 0 samples (repeatable).", show_default="0 and 0.8"),
]
MaxNewTokens = Annotated[int, typer.Option(help="Largest number of tokens in an answer.")]
Rounds = Annotated[int, typer.Option(max=1000, help="Times to give each answer; the median counts.")]
OutFile = Annotated[Path, typer.Option("--out", help="File to write the numbers to.")]


@app.command()
def methods(
    model: Model = "tiny",
    draft_model: Annotated[
        str | None, typer.Option(help="Smaller model with the same tokenizer, for the methods that need one.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="Method to run (repeatable).", metavar="NAME", show_default="all"),
    ] = None,
    prompts: Prompts = None,
    limit: Limit = None,
    dtype: Annotated[
        list[str] | None,
        of_model(help="Dtype to run in (repeatable); a GGUF file has its own.", show_default="float32"),
    ] = None,
    temperature: Temperatures = None,
    rounds: Rounds = 3,
    max_new_tokens: MaxNewTokens = 200,
    background: Background = "general",
    speculator: Speculator = FOUND,
    device: Device = None,
    exact: ExactOption = "auto",
    out_file: OutFile = Path("build/methods.json"),
    html_file: HtmlFile = None,
) -> None:
    """Compare every drafter and combination with plain decoding, in turns on the same prompts.

    Every output is compared with plain decoding. In float32 and where exactness is in force a mismatch ends the run
    (status 1); elsewhere mismatches are counted. Answers that loop are counted apart. Speed is measured on the tokens
    after the prefill. The rows of a step are the last token, the drafted tokens and the lookahead rows. Transformers'
    own loop (transformers, transformers-lookup) answers only greedily.
    """
    from rich.progress import track

    from foretoken.measure.harness import Row, headline, summarise
    from foretoken.measure.methods import choose_methods
    from foretoken.measure.prompts import bundled_prompts, parse_prompts
    from foretoken.measure.run import SEED, Conditions, measure

    asked = read_exact(exact)
    theirs = _is_of_transformers(model)
    if draft_model is not None and not (theirs and _is_of_transformers(draft_model)):
        raise RequestError("A draft model is for a model of transformers, and is one: leave out --draft-model.")
    inputs = [*([] if prompts is None else [prompts]), *read_from(model), *read_from(background)]
    check_outputs(out_file, html_file, inputs + read_from(draft_model or ""))
    has_heads = theirs and _has_heads(model, speculator)
    chosen = choose_methods(method or [], draft_model is not None, has_heads, theirs)
    conditions = [Conditions(value, rounds, max_new_tokens) for value in temperature or [0.0, 0.8]]
    for one in chosen if method and all(some.temperature for some in conditions) else []:
        if one.generate is not None:
            raise RequestError(f"The method {one.name!r} answers only greedily: add --temperature 0.")
    workload = bundled_prompts() if prompts is None else read_text(prompts)
    silence_transformers()
    taken = parse_prompts(workload, _encoder(model), limit)
    found: dict[str, Any] = _provenance(workload, SEED)
    found["provenance"] |= {
        "model": Path(model).name,
        "draft_model": draft_model and Path(draft_model).name,
        "background": Path(background).name,
        "rounds": rounds,
        "max_new_tokens": max_new_tokens,
        "limit": limit,
    }
    found["methods"] = [one.as_dict() for one in chosen]
    rows: list[Row] = []
    for name in dtype or ["float32" if theirs else "auto"]:
        if theirs:
            measured: Measured = _measured_model(model, draft_model, name, device, background, speculator, asked)
        else:
            measured = _measured_engine(model, name, device, background, speculator, asked)
        found["provenance"].setdefault("exact", {})[measured.dtype] = measured.exact
        for some in conditions:
            said = f"{measured.dtype}, {some.decoding}: {len(chosen)} methods in turns"
            with _ended_by_another_text():
                for more in track(measure(measured, taken, chosen, some), said, len(taken), console=err):
                    rows += more
                    # Written prompt by prompt, so that a run that is stopped keeps what it measured.
                    _write(out_file, found | {"summary": summarise(rows), "rows": [row.as_dict() for row in rows]})
    summary = summarise(rows)
    out.print(markdown_table(headline(summary)))
    for difference in filter(None, (row.difference for row in rows)):
        err.print(plain(difference))
    if html_file is not None:
        from foretoken.reports.methods import methods_page

        write_text(html_file, methods_page(summary, Path(model).name))
    err.print(f"written to {plain(str(out_file))}", style="dim")


@app.command()
def speculator(
    model: Model = "tiny",
    speculator: Speculator = FOUND,
    prompts: Prompts = None,
    limit: Limit = None,
    dtype: Dtype = "auto",
    temperature: Temperatures = None,
    max_new_tokens: MaxNewTokens = 100,
    background: Background = "general",
    device: Device = None,
    exact: ExactOption = "auto",
    out_file: OutFile = Path("build/speculator.json"),
    html_file: HtmlFile = None,
) -> None:
    """Look at trained heads on the model's own answers: how right, how sure and how repetitive each one is.

    The model answers plainly once; drafters are replayed on these answers. Beside what chains, the best paths and the
    best tree are accepted, with and without n-grams, stands an oracle that finds the right path in the lattice of the
    heads' 16 best tokens. Answers that loop are left out.
    """
    from rich.progress import track

    from foretoken.measure.prompts import bundled_prompts, parse_prompts
    from foretoken.measure.run import SEED, Conditions
    from foretoken.measure.speculator import analyse
    from foretoken.reports.speculator import length_rows, speculator_page

    asked = read_exact(exact)
    if not _is_of_transformers(model):
        raise RequestError(f"This benchmark needs a model of transformers, which {model!r} is not.")
    inputs = [*([] if prompts is None else [prompts]), *read_from(model), *read_from(background)]
    check_outputs(out_file, html_file, inputs)
    if not _has_heads(model, speculator):
        raise RequestError(f"There are no trained heads for {model!r}: name their folder with --speculator.")
    conditions = [Conditions(value, 1, max_new_tokens) for value in temperature or [0.0, 0.8]]
    workload = bundled_prompts() if prompts is None else read_text(prompts)
    silence_transformers()
    taken = parse_prompts(workload, _encoder(model), limit)
    measured = _measured_model(model, None, dtype, device, background, speculator, asked)
    found: list[Analysis] = []
    for some in conditions:
        steps = analyse(measured, taken, some)
        found += [one for one in track(steps, some.decoding, len(taken) + 1, console=err) if one is not None]
    options = {"model": Path(model).name, "dtype": measured.dtype, "background": Path(background).name, "limit": limit}
    options |= {"speculator": Path(speculator).name, "max_new_tokens": max_new_tokens}
    numbers: dict[str, Any] = _provenance(workload, SEED)
    numbers["provenance"] |= options
    _write(out_file, numbers | {"found": [asdict(one) for one in found]})
    for one in found:
        out.print(markdown_table(_head_rows(one)))
        out.print(markdown_table(length_rows(one)))
    if html_file is not None:
        write_text(html_file, speculator_page(found, Path(model).name, Path(speculator).name))
    err.print(f"written to {plain(str(out_file))}", style="dim")


def _head_rows(found: Analysis) -> list[dict[str, Any]]:
    """A row for each head."""
    return [
        {
            "decoding": found.decoding,
            "head": str(line["head"]),
            "top-1": line["top"][0],
            "top-4": line["top"][3],
            "top-16": line["top"][15],
            "entropy": line["entropy"],
            "repeats": line["repeated"],
        }
        for line in found.heads
    ]


@app.command(name="llama-cpp")
def llama_cpp(
    files: Annotated[list[Path], typer.Argument(help="GGUF files.", show_default=False)],
    prompts: Prompts = None,
    limit: Limit = None,
    temperature: Temperatures = None,
    rounds: Rounds = 3,
    max_new_tokens: MaxNewTokens = 200,
    threads: Annotated[int, typer.Option(min=1, help="That forwards are computed with.")] = 1,
    background: Background = "general",
    exact: ExactOption = "auto",
    out_file: OutFile = Path("build/llama-cpp.json"),
) -> None:
    """Compare drafting on GGUF files with plain decoding and with llama-cpp-python's prompt lookup.

    All answer in turns. Speeds are those of the tokens after the first one, by processor time and by the clock on the
    wall. With one thread the processor time is that of the answer, whatever else the machine does. llama-cpp-python
    answers greedily only. Every text is compared with the plain one of the same library; the exit status is 1 if one of
    ours differs where exactness is in force.
    """
    from rich.progress import track

    from foretoken.measure import llama_cpp as measuring
    from foretoken.measure.prompts import bundled_prompts, parse_prompts
    from foretoken.measure.run import SEED, Conditions

    asked = read_exact(exact)
    inputs = [*files, *([] if prompts is None else [prompts]), *read_from(background)]
    check_outputs(out_file, None, inputs)
    conditions = [Conditions(value, rounds, max_new_tokens) for value in temperature or [0.0, 0.8]]
    workload = bundled_prompts() if prompts is None else read_text(prompts)
    found, lines, changed = _provenance(workload, SEED), list[dict[str, Any]](), False
    found["provenance"] |= {"rounds": rounds, "max_new_tokens": max_new_tokens, "limit": limit, "threads": threads}
    for path in files:
        measured = _measured_gguf(path, background, asked, threads)
        questions = parse_prompts(workload, measured.engine.encode, limit)
        for some in conditions:
            turns = measuring.measure(measured, questions, some)
            answers = list(track(turns, f"{path.name}, {some.decoding}", len(questions), console=err))
            new = list(measuring.summarise(measured, questions, answers, some.decoding))
            lines += [asdict(line) | {"exact": measured.exact} for line in new]
            ours = [line for line in new if not line.method.startswith(measuring.THEIRS)]
            changed |= measured.exact and any(line.same_text < line.prompts for line in ours)
            _write(out_file, found | {"lines": lines})
    out.print(markdown_table([line for line in lines if line["method"] != measuring.PLAIN]))
    err.print(f"written to {plain(str(out_file))}", style="dim")
    if changed:
        raise typer.Exit(1)


@app.command()
def costs(
    model: Model = "tiny",
    dtype: Dtype = "auto",
    device: Device = None,
    exact: ExactOption = "auto",
    out_file: OutFile = Path("build/costs.json"),
) -> None:
    """Measure what a forward over n rows costs on this machine; the file is what "tune --costs" reads.

    The costs that answers of this model begin with are replaced by these.
    """
    from foretoken.core.measuring import measure_costs
    from foretoken.engines import load_engine
    from foretoken.memory.costs import keep_costs, write_costs

    asked = read_exact(exact)
    check_outputs(out_file, None, read_from(model))
    silence_transformers()
    engine = load_engine(model, dtype, device, trust_remote_code=False, exact=asked)
    with err.status("measuring"):
        engine.settle_threads()
        curve = measure_costs(engine.target(), MAX_COST_SECONDS)
    keep_costs(engine.cost_key, curve)
    write_costs(out_file, curve, folders=True)
    plain_seconds = curve.seconds(1)
    out.print(
        markdown_table(
            [
                {"rows": rows, "milliseconds": 1000 * value, "of one row": value / plain_seconds}
                for rows, value in curve.as_dict().items()
            ]
        )
    )
    err.print(f"written to {plain(str(out_file))}", style="dim")


@app.command()
def vllm(
    model: Model = "tiny",
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="none, ngram, suffix, foretoken or foretoken-heads (repeatable).",
            show_default="none, ngram, foretoken",
        ),
    ] = None,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1024, help="Requests at once (repeatable).", show_default="1, 4, 16 and 32"),
    ] = None,
    prompts: Prompts = None,
    limit: Limit = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Kind of prompts to take (repeatable).", show_default="all")
    ] = None,
    dtype: Annotated[str, of_model(help="Dtype to run in, by vLLM's name.")] = "float32",
    requests: Annotated[int, typer.Option(min=1, help="Requests of each kind; as many as run at once at least.")] = 32,
    max_new_tokens: MaxNewTokens = 64,
    max_draft_tokens: Annotated[int, typer.Option(min=1, max=128, help="Most drafted tokens of a request.")] = 8,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of a CPU that compute.", show_default="one for each core")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="Let vLLM compile the model.")] = False,
    out_file: OutFile = Path("build/vllm.json"),
) -> None:
    """Compare our drafter in vLLM with vLLM's own and with none, by requests at once and by kind of text.

    All engines run in this process and get the same requests, each the next step as soon as it has used least time. The
    texts are compared with those without drafts; in float32 a mismatch ends the run (status 1). Nothing is remembered
    from one answer to the next, since prompts come more than once. On one thread the processor time is that of all
    that the engine does.
    """
    from foretoken.measure.prompts import bundled_prompts, parse_prompts
    from foretoken.measure.vllm import BATCHED_TOKENS, SEED, check_methods, engines, folder_of, measure, prepare

    check_outputs(out_file, None, [*([] if prompts is None else [prompts]), *read_from(model)])
    names = check_methods(method or ["ngram", "foretoken"])
    workload = bundled_prompts() if prompts is None else read_text(prompts)
    levels = concurrency or [1, 4, 16, 32]
    prepare(threads)
    options = {"dtype": dtype, "max_num_seqs": max(levels), "enforce_eager": not compiled}
    options["max_num_batched_tokens"] = BATCHED_TOKENS
    served = engines(folder_of(model), names, options, max_draft_tokens)
    tokenizer = served[0].llm.get_tokenizer()
    taken = parse_prompts(workload, lambda text: list(tokenizer(text)["input_ids"]), limit)
    kinds = list(dict.fromkeys(question.kind for question in taken if not kind or question.kind in kind))
    if not kinds:
        raise RequestError(f"There are no prompts of the kind {kind}: choose of {sorted({q.kind for q in taken})}.")
    found: dict[str, Any] = _provenance(workload, SEED)
    given = {"model": Path(model).name, "dtype": dtype, "max_new_tokens": max_new_tokens, "eager": not compiled}
    found["provenance"] |= given | {"max_draft_tokens": max_draft_tokens, "limit": limit}
    rows: list[dict[str, Any]] = []
    for name in kinds:
        questions = [question for question in taken if question.kind == name]
        for level in levels:
            with err.status(f"{plain(name)}, {level} at once"):
                loads = measure(served, questions, level, max(requests, level), max_new_tokens)
            rows += [load.row(loads[0]) for load in loads]
            found.setdefault("loads", []).extend(load.as_dict() for load in loads)
            _write(out_file, found | {"rows": rows})
    out.print(markdown_table(rows))
    err.print(f"written to {plain(str(out_file))}", style="dim")
    changed = sum(row["other texts"] for row in rows)
    if changed and dtype == "float32":
        err.print(f"{changed} texts are not those of decoding without drafts.", style="red")
        raise typer.Exit(1)


def _is_of_transformers(model: str) -> bool:
    """Whether transformers runs it."""
    return engine_module(model) == ENGINES["*"]


def _encoder(model: str) -> Callable[[str], list[int]]:
    """What makes tokens of a prompt, as the model's tokenizer does by itself."""
    if not _is_of_transformers(model):
        from foretoken.engines import load_engine

        return load_engine(model, "auto", None, trust_remote_code=False, exact=False).encode
    from foretoken.engines.transformers.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    return lambda text: list(tokenizer(text)["input_ids"])


def _has_heads(model: str, speculator: str) -> bool:
    """Whether the methods of trained heads are among all.

    Raises:
        ForetokenError: If the speculator's folder is not there; before anything is loaded.
    """
    from foretoken.engines.transformers.loading import resolve
    from foretoken.engines.transformers.speculator import find_speculator

    return find_speculator(resolve(model), speculator) is not None


def _measured_model(
    model: str,
    draft_model: str | None,
    dtype: str,
    device: str | None,
    background: str,
    speculator: str,
    exact: Exact,
) -> MeasuredModel:
    """The model in a dtype, its corpus, and the draft model in the same dtype."""
    from foretoken.engines.transformers.loading import load_model
    from foretoken.engines.transformers.threads import settle_threads
    from foretoken.measure.measured_model import MeasuredModel
    from foretoken.ngrams.background import Background as Corpus

    with err.status(Text(f"loading {plain(model)}")):
        loaded = load_model(model, dtype, device)
        draft = load_model(draft_model, dtype, device) if draft_model else None
        settle_threads(loaded)
    corpus = background_folder(background, model)
    return MeasuredModel(loaded, Corpus.open(corpus) if corpus else None, draft, speculator, exact)


def _measured_engine(
    model: str, dtype: str, device: str | None, background: str, speculator: str, exact: Exact
) -> MeasuredEngine:
    """The model of another engine, and its corpus."""
    from foretoken.engines import load_engine

    with err.status(Text(f"loading {plain(model)}")):
        engine = load_engine(model, dtype, device, False, speculator, exact)
        engine.settle_threads()
        return _with_corpus(engine, background)


def _measured_gguf(path: Path, background: str, exact: Exact, threads: int) -> MeasuredEngine:
    """A GGUF file and its corpus."""
    from foretoken.engines import import_engine

    if not path.name.endswith(".gguf"):
        raise RequestError(f"{str(path)!r} is no GGUF file: their names end in .gguf.")
    with err.status(Text(f"loading {plain(path.name)}")):
        engine = import_engine(str(path)).LlamaCppEngine(path, threads=threads, exact=exact)
        return _with_corpus(engine, background)


def _with_corpus(engine: Engine, background: str) -> MeasuredEngine:
    """A model of any engine, and the corpus of this name in its tokens."""
    from foretoken.measure.measured_model import MeasuredEngine
    from foretoken.memory.corpus.general import general_folder
    from foretoken.ngrams.background import Background as Corpus

    if background == "none":
        return MeasuredEngine(engine)
    if background == "general":
        background = str(general_folder(engine.batch_encoder(), engine.fingerprint))
    return MeasuredEngine(engine, Corpus.open(background, engine.fingerprint))


@contextmanager
def _ended_by_another_text() -> Iterator[None]:
    """End with status 1 where a drafted text is not the plain one."""
    from foretoken.measure.differences import TextChanged

    try:
        yield
    except TextChanged as error:
        err.print(plain(str(error)), style="red")
        raise typer.Exit(1) from error


def _provenance(workload: str, seed: int) -> dict[str, Any]:
    from foretoken.measure.provenance import of_model

    return {"provenance": of_model(workload, seed)}


def _write(path: Path, found: dict[str, Any]) -> None:
    write_quietly(path, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
