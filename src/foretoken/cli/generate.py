"""``foretoken generate``, ``compare`` and ``check``: the commands that run a model."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import foretoken
from foretoken.cli.console import err, out, print_json, write
from foretoken.core.budget import FixedBudget
from foretoken.core.errors import ForetokenError
from foretoken.core.numbers import real
from foretoken.drafters import DEFAULT_DRAFTER, DRAFTERS
from foretoken.texts import NUL, encoding_of, is_text, read_text

if TYPE_CHECKING:
    from foretoken.api.answer import Stream
    from foretoken.api.language_model import LanguageModel
    from foretoken.api.options import Options, Prompt
    from foretoken.measure.check import Report
    from foretoken.measure.compare import Comparison

Stdin = Annotated[str | None, typer.Argument(metavar="[-]", help="- reads the prompt from standard input.")]
Model = Annotated[str, typer.Option(help='A model folder, a hub name, or "tiny", which comes with the package.')]
PromptText = Annotated[list[str] | None, typer.Option("--prompt", help="Text to continue; may be given again.")]
PromptFile = Annotated[list[Path] | None, typer.Option("--file", help="A file to continue; may be given again.")]
Chat = Annotated[bool, typer.Option("--chat", help="Ask the prompt as a chat message instead of continuing it.")]
MaxNewTokens = Annotated[int, typer.Option(help="The most tokens to add.")]
Temperature = Annotated[float | None, typer.Option(help="0 for greedy, above 0 samples; else as the model says.")]
TopK = Annotated[int | None, typer.Option(help="Sample from the k most probable tokens.")]
TopP = Annotated[float | None, typer.Option(help="Sample from this much probability.")]
MinP = Annotated[float | None, typer.Option(help="Drop tokens below this share of the best one's probability.")]
Penalty = Annotated[float | None, typer.Option("--repetition-penalty", help="Above 1 repeats less.")]
Stop = Annotated[list[str] | None, typer.Option(help="A string that ends the answer; may be given again.")]
Seed = Annotated[int | None, typer.Option(help="Decides the text under sampling.")]
DrafterName = Annotated[
    str | None,
    typer.Option("--drafter", help=f"One of {', '.join([*DRAFTERS, 'none'])}; {DEFAULT_DRAFTER} where none is named."),
]
DraftModelName = Annotated[
    str | None, typer.Option("--draft-model", help="A smaller model of the same tokenizer, which then drafts.")
]
ExitLayer = Annotated[
    int | None,
    typer.Option("--exit-layer", help="After how many layers early-exit, which then drafts, leaves."),
]
BudgetSize = Annotated[
    int | None, typer.Option("--budget", min=0, max=1024, help="Tokens to draft for each step; else just what pays.")
]
References = Annotated[
    list[Path] | None, typer.Option("--reference", help="A file that the answer may quote or edit; may be given again.")
]
BackgroundName = Annotated[
    str, typer.Option("--background", help='"general", the folder of a corpus, or "none".', metavar="NAME")
]
HistoryFile = Annotated[Path | None, typer.Option("--history", help="The file that keeps answers; else the user's.")]
ShowDrafts = Annotated[bool, typer.Option("--show-drafts", help="Show the guesses that were accepted in colour.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
Dtype = Annotated[str, typer.Option(help='"float32", "bfloat16", "float16", or "auto" for what the weights have.')]
Device = Annotated[str | None, typer.Option(help='"cpu", "cuda"; a GPU if there is one.')]


def generate(
    stdin: Stdin = None,
    model: Model = "tiny",
    prompt: PromptText = None,
    file: PromptFile = None,
    chat: Chat = False,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    stop: Stop = None,
    seed: Seed = None,
    drafter: DrafterName = None,
    draft_model: DraftModelName = None,
    exit_layer: ExitLayer = None,
    budget: BudgetSize = None,
    reference: References = None,
    background: BackgroundName = "general",
    history: Annotated[
        Path | None, typer.Option(help="The file that keeps answers; the user's where not given.")
    ] = None,
    no_history: Annotated[bool, typer.Option("--no-history", help="Neither read nor keep answers.")] = False,
    namespace: Annotated[str, typer.Option(help="Whose answers to draft from and to keep this one with.")] = "default",
    show_drafts: ShowDrafts = False,
    as_json: AsJson = False,
    dtype: Dtype = "auto",
    device: Device = None,
    lookahead_parallel: Annotated[
        bool, typer.Option("--lookahead-parallel", help="Draft by lookahead, shared by the processes of torchrun.")
    ] = False,
) -> None:
    """Answer a prompt, written to the terminal as it comes; a summary goes to standard error."""
    prompts = read_prompts(stdin, prompt, file)
    if len(prompts) > 1:
        raise ForetokenError(f"generate answers one prompt and was given {len(prompts)}: give one, or use compare.")
    options = make_options(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        seed=seed,
        budget=None if budget is None else FixedBudget(budget),
        references=read_references(reference),
        namespace=namespace,
    )
    asked = as_prompt(prompts[0], chat)
    if lookahead_parallel:
        others = {
            "draft_model": draft_model,
            "exit_layer": exit_layer,
            "reference": reference,
            "background": None if background in ("general", "none") else background,
            "history": history,
            "namespace": None if namespace == "default" else namespace,
        }
        refuse_together(drafter, others)
        generate_together(asked, options, model, dtype, device, show_drafts, as_json)
        return
    drafter = choose_drafter(drafter, draft_model, exit_layer)
    if no_history and history is not None:
        raise ForetokenError("--history and --no-history exclude each other: leave one of them out.")
    kept = False if no_history else history or True
    lm = quiet_load(model, dtype, device, drafter, background, kept, draft_model, exit_layer)
    write_answer(lm.stream(asked, **options), show_drafts, as_json)


def compare(
    stdin: Stdin = None,
    model: Model = "tiny",
    prompt: PromptText = None,
    file: PromptFile = None,
    chat: Chat = False,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    stop: Stop = None,
    seed: Seed = 0,
    drafter: DrafterName = None,
    draft_model: DraftModelName = None,
    exit_layer: ExitLayer = None,
    budget: BudgetSize = None,
    reference: References = None,
    background: BackgroundName = "general",
    rounds: Annotated[int, typer.Option(min=1, help="How often each prompt is answered both ways, in turns.")] = 3,
    show_drafts: ShowDrafts = False,
    as_json: AsJson = False,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Answer the same prompts plain and drafted, in turns; exit status 1 if a token differs."""
    from foretoken.measure.compare import compare as compare_prompt

    prompts = read_prompts(stdin, prompt, file)
    options = make_options(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        seed=seed,
        budget=None if budget is None else FixedBudget(budget),
        references=read_references(reference),
    )
    drafter = choose_drafter(drafter, draft_model, exit_layer)
    lm = quiet_load(model, dtype, device, drafter, background, False, draft_model, exit_layer)
    lm.memories.wait()
    rows = []
    for name, text in prompts:
        with err.status(f"{name}: plain and drafted, in turns"):
            rows.append(compare_prompt(lm, as_prompt((name, text), chat), drafter, rounds, options))
        if show_drafts and not as_json:
            show_answer(lm, (name, text), as_prompt((name, text), chat), options)
    names = [name for name, _ in prompts]
    if as_json:
        print_json([{"prompt": name} | row.as_dict() for name, row in zip(names, rows, strict=True)])
    else:
        out.print(comparison_table(names, rows))
    if not all(row.identical for row in rows):
        raise typer.Exit(1)


def check(
    model: Annotated[str, typer.Argument(help='A model folder, a hub name, or "tiny".')] = "tiny",
    prompt: PromptText = None,
    dtype: Annotated[list[str] | None, typer.Option(help="A dtype to check; may be given again.")] = None,
    max_new_tokens: MaxNewTokens = 64,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Report the numeric promise on a model; status 1 if float32 changes a token, or logits are not numbers."""
    from foretoken.measure.check import check as check_model

    reports = []
    for name in dtype or ["float32", "bfloat16", "float16"]:
        lm = quiet_load(model, name, device, None, "none")
        with err.status(f"{name}: plain and drafted"):
            reports.append(check_model(lm, max_new_tokens, prompt or None))
    if as_json:
        print_json([report.as_dict() for report in reports])
    else:
        out.print(check_table(reports))
    for report in reports:
        if report.not_numbers:
            told = f"In {report.dtype} the logits are not numbers in {report.not_numbers} of {report.answers} answers"
            err.print(f"foretoken: {told}: the weights are damaged, or too large for this dtype.", style="red")
    if not all(report.holds for report in reports):
        raise typer.Exit(1)


def read_prompts(stdin: str | None, texts: Sequence[str] | None, files: Sequence[Path] | None) -> list[tuple[str, str]]:
    """The prompts of a command as (name, text).

    Raises:
        ForetokenError: If there is none, or one cannot be read.
    """
    prompts = [(f"prompt {i}", text) for i, text in enumerate(texts or [], start=1)]
    prompts += [(path.name, read_text(path)) for path in files or []]
    if stdin == "-":
        prompts.append(("standard input", read_stdin()))
    elif stdin is not None:
        raise ForetokenError(
            f"{stdin!r} is not an option: give a prompt with --prompt, a file with --file, or - alone."
        )
    if not prompts:
        raise ForetokenError("There is no prompt: give one with --prompt, a file with --file, or - for standard input.")
    return prompts


def read_stdin() -> str:
    """All of standard input.

    Raises:
        ForetokenError: If it is closed or no text.
    """
    if sys.stdin.isatty():
        err.print("Type the prompt and end it with Ctrl-D on a line of its own.", style="dim")
    with suppress(OSError):
        os.set_blocking(sys.stdin.fileno(), True)  # else a slow writer's text would be read in part
    try:
        content = sys.stdin.buffer.read()
        encoding = encoding_of(content[:4])
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise ForetokenError(f"Standard input could not be read: it is not {name} text.") from error
    except OSError as error:
        reason = "it is closed" if error.errno == errno.EBADF else error.strerror
        raise ForetokenError(f"Standard input could not be read: {reason}.") from error
    if "\0" in text:
        raise ForetokenError(f"Standard input could not be read: it has {NUL}.")
    return text


def read_references(files: Sequence[Path] | None) -> list[str] | None:
    """The documents to draft from, None where there are none."""
    return [read_text(path) for path in files] if files else None


def as_prompt(prompt: tuple[str, str], chat: bool) -> Prompt:
    """The text to continue, or the conversation to answer."""
    _, text = prompt
    return [{"role": "user", "content": text}] if chat and text else text


def make_options(**options: Any) -> Options:
    """The options that were given; the others follow the model's own config.

    Raises:
        ForetokenError: If a number is not finite, or a stop string holds bytes that are no text.
    """
    for name, value in options.items():
        if isinstance(value, float):
            real(f"--{name.replace('_', '-')}", value)
    for text in options.get("stop") or []:
        if not is_text(text):
            raise ForetokenError("A stop string holds bytes that are no text: give it as UTF-8.")
    given: Options = {name: value for name, value in options.items() if value is not None}  # type: ignore[assignment]
    return given


def quiet_load(
    model: str,
    dtype: str,
    device: str | None,
    drafter: str | None,
    background: str,
    history: bool | Path = False,
    draft_model: str | None = None,
    exit_layer: int | None = None,
) -> LanguageModel:
    """Load a model without the library's progress bars and advice.

    Raises:
        ForetokenError: As ``foretoken.load``, and if the device is an empty string.
    """
    if device == "":
        raise ForetokenError('The device is empty: name one, such as "cpu", or leave out --device.')
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with err.status(f"loading {model}"):
        return foretoken.load(
            model,
            dtype=dtype,
            device=device,
            drafter=drafter,
            draft_model=draft_model,
            exit_layer=exit_layer,
            background=None if background == "none" else background,
            history=history,
        )


def choose_drafter(drafter: str | None, draft_model: str | None, exit_layer: int | None) -> str:
    """The drafter that was named, or that what else was given is for.

    Raises:
        ForetokenError: If another one was named than what else was given is for.
    """
    for name, option, given in (
        ("draft-model", "--draft-model", draft_model),
        ("early-exit", "--exit-layer", exit_layer),
    ):
        if given is not None and drafter not in (None, name):
            raise ForetokenError(f"{option} is for the drafter {name}, not for {drafter!r}: leave one of them out.")
        drafter = name if given is not None else drafter
    return DEFAULT_DRAFTER if drafter is None else drafter


def refuse_together(drafter: str | None, others: Mapping[str, object]) -> None:
    """Refuse what processes that draft together by lookahead cannot take.

    Raises:
        ForetokenError: If another drafter was named, or something that lookahead does not draft from.
    """
    if drafter not in (None, "lookahead"):
        raise ForetokenError(f"--lookahead-parallel drafts by lookahead, not by {drafter!r}: leave out --drafter.")
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ForetokenError(
            f"--lookahead-parallel drafts from the text and its window only: leave out --{given[0].replace('_', '-')}."
        )


def generate_together(
    prompt: Prompt,
    options: Options,
    model: str,
    dtype: str,
    device: str | None,
    show_drafts: bool,
    as_json: bool,
) -> None:
    """Answer a prompt with all the processes that torchrun started; the first of them writes the answer.

    Nothing is drafted from a memory, and no answer is kept: what another thread fills differs between processes.

    Raises:
        ForetokenError: If there is no group of such processes, it is too large, or the model takes no draft trees.
    """
    from foretoken.api.answer import Stream
    from foretoken.api.drafting import require_trees
    from foretoken.drafters.lookahead import LookaheadDrafter
    from foretoken.engines.parallel import ParallelTarget, process_group

    lookahead = LookaheadDrafter()
    window, ngram, guesses = lookahead.shape
    with process_group(device, max_ranks=window + guesses) as ranks:
        lm = quiet_load(model, dtype, str(ranks.device), None, "none")
        budget = options.pop("budget", FixedBudget(guesses * (ngram - 1)))
        given: dict[str, Any] = {k: v for k, v in options.items() if k not in ("references", "namespace")}
        request = lm.prepare(prompt, **given)
        require_trees(request.target)  # type: ignore[arg-type]
        steps = replace(request, target=ParallelTarget(request.target)).steps(lookahead, budget)
        stream = Stream(steps, lm.engine.detokenizer(request.prompt), len(request.prompt))
        if ranks.rank == 0:
            write_answer(stream, show_drafts, as_json)
        else:
            for _ in stream:
                pass


def write_answer(stream: Stream, show_drafts: bool, as_json: bool) -> None:
    """Print an answer as it comes and a summary, or all of it as JSON."""
    interrupted = False
    try:
        for chunk in stream:
            if not as_json:
                write(chunk.text, accepted=show_drafts and chunk.accepted)
    except KeyboardInterrupt:
        interrupted = True
    result = stream.result
    if as_json:
        answer = {"text": result.text, "tokens": result.tokens, "finish_reason": result.finish_reason}
        print_json(answer | {"stats": result.stats.as_dict()})
    else:
        write("\n")
        err.print(f"{result.finish_reason or 'interrupted'}: {summary(result.stats)}", style="dim")
    if interrupted:
        raise typer.Exit(130)


def show_answer(lm: LanguageModel, named: tuple[str, str], prompt: Prompt, options: Options) -> None:
    """Print the end of the prompt and the drafted answer, accepted guesses in colour."""
    name, text = named
    out.rule(f"{name}: the prompt's end, then the answer, its accepted guesses in green")
    write("".join(text.splitlines(keepends=True)[-6:]))
    for chunk in lm.stream(prompt, **options):
        write(chunk.text, accepted=chunk.accepted)
    write("\n")


def summary(stats: foretoken.DecodeStats) -> str:
    """One line on what an answer cost."""
    speed = stats.tokens / stats.seconds if stats.seconds else 0.0
    return (
        f"{stats.tokens} tokens in {stats.steps} steps after the prefill ({stats.acceptance_length:.2f} a step), "
        f"{stats.accepted} of {stats.drafted} drafted tokens accepted, {stats.seconds:.2f} s, {speed:.0f} tokens/s"
    )


def comparison_table(names: Sequence[str], rows: Sequence[Comparison]) -> Table:
    """One row a prompt."""
    table = Table("prompt", title="plain → drafted, in turns")
    for heading in ("tokens", "steps", "seconds", "speed", "tokens\n/step"):
        table.add_column(heading, justify="right")
    table.add_column("identical")
    for name, row in zip(names, rows, strict=True):
        table.add_row(
            name,
            str(len(row.plain.tokens)),
            f"{row.plain.stats.steps} → {row.drafted.stats.steps}",
            f"{row.plain_seconds:.2f} → {row.drafted_seconds:.2f}",
            f"{row.speed:.2f}x",
            f"{row.drafted.stats.acceptance_length:.2f}",
            "yes" if row.identical else "no",
        )
    return table


def check_table(reports: Sequence[Report]) -> Table:
    """One row a dtype."""
    contexts = dict.fromkeys(f"{start} to {end}" for report in reports for start, end in report.contexts)
    table = Table("dtype", title="drafted against plain, greedy", caption=f"after {', '.join(contexts) or 'no'} tokens")
    for heading in ("answers", "tokens", "draft\ntrees", "identical", "largest\nlogit change", "first difference"):
        table.add_column(heading, justify="left" if heading in ("draft\ntrees", "first difference") else "right")
    for report in reports:
        first = min(report.differences, key=lambda difference: difference.position, default=None)
        change = "unknown" if report.noise is None else f"{report.noise:.2g}"
        tie = "" if first is None or first.gap is None else f", best logits {first.gap:.2g} apart"
        table.add_row(
            report.dtype,
            str(report.answers),
            str(report.tokens),
            "yes" if report.trees else "chains only",
            f"{report.answers - len(report.differences) - report.not_numbers} of {report.answers}",
            change,
            f"token {first.position + 1}{tie}" if first else "none",
        )
    return table
