"""``foretoken generate``: answer one prompt."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from foretoken.cli.input import as_prompt, chosen_history, load_model, loading, read_exact, read_options, read_prompts
from foretoken.cli.options import (
    HISTORY,
    AnswerOptions,
    AsJson,
    DraftOptions,
    ModelOptions,
    PromptOptions,
    ShowDrafts,
    grouped,
    of_draft,
)
from foretoken.cli.output import write_answer
from foretoken.core.errors import RequestError
from foretoken.engines.base import FOUND

if TYPE_CHECKING:
    from foretoken.api.options import Options, Prompt


@grouped
def generate(
    asked: PromptOptions,
    answer: AnswerOptions,
    drafting: DraftOptions,
    where: ModelOptions,
    history: Annotated[
        Path | None,
        of_draft(
            help='File that keeps answers between runs; "1" is the usual one.', show_default=f"${HISTORY}, or none"
        ),
    ] = None,
    no_history: Annotated[
        bool, of_draft("--no-history", help=f"Neither read nor keep answers, whatever ${HISTORY} says.")
    ] = False,
    namespace: Annotated[str, of_draft(help="Draft from the answers kept under this name, and keep this one.")] = (
        "default"
    ),
    lookahead_parallel: Annotated[
        bool,
        of_draft("--lookahead-parallel", help="Draft by lookahead, in all the processes of torchrun."),
    ] = False,
    show_drafts: ShowDrafts = False,
    as_json: AsJson = False,
) -> None:
    """Answer a prompt.

    The answer streams to standard output, and a summary goes to standard error.
    """
    prompts = read_prompts(asked)
    if len(prompts) > 1:
        raise RequestError(f"generate answers one prompt and was given {len(prompts)}: give one, or use compare.")
    ((_, text),) = prompts
    prompt = as_prompt(text, asked.chat)
    options = read_options(answer, drafting)
    if lookahead_parallel:
        refuse_with_parallel(drafting, history, namespace)
        generate_together(prompt, options, where, show_drafts, as_json)
        return
    if no_history and history is not None:
        raise RequestError("--history and --no-history exclude each other: leave one of them out.")
    lm = load_model(where, drafting, history=False if no_history else chosen_history(history))
    options["namespace"] = namespace
    write_answer(lm.stream(prompt, **options), show_drafts, as_json)


def generate_together(prompt: Prompt, options: Options, where: ModelOptions, show_drafts: bool, as_json: bool) -> None:
    """Answer with all the processes that torchrun started. The first of them writes the answer."""
    from foretoken.api.parallel import load_parallel

    with ExitStack() as group:
        exact = read_exact(where.exact) is True
        with loading(where):
            parallel = group.enter_context(
                load_parallel(where.model, dtype=where.dtype, device=where.device, exact=exact)
            )
        stream = parallel.stream(prompt, **options)
        if parallel.rank == 0:
            write_answer(stream, show_drafts, as_json)
        else:
            for _ in stream:
                pass


def refuse_with_parallel(drafting: DraftOptions, history: Path | None, namespace: str) -> None:
    """Refuse what processes that draft together by lookahead cannot take.

    Raises:
        ForetokenError: If another drafter was named, or something that lookahead does not draft from.
    """
    if drafting.drafter not in (None, "lookahead"):
        raise RequestError(
            f"--lookahead-parallel drafts by lookahead, not by {drafting.drafter!r}: leave out --drafter."
        )
    given = {
        "--reference": bool(drafting.reference),
        "--background": drafting.background not in ("general", "none"),
        "--speculator": drafting.speculator not in (FOUND, "none"),
        "--history": history is not None,
        "--namespace": namespace != "default",
    }
    for option in (option for option, is_given in given.items() if is_given):
        raise RequestError(f"--lookahead-parallel drafts from the text and its window only: leave out {option}.")
