"""The options that several commands take: each is described here once.

Options that go together are a group, a dataclass whose fields are the options. ``grouped`` lets a command take groups:

    @grouped
    def generate(asked: PromptOptions, answer: AnswerOptions, as_json: AsJson = False) -> None: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from foretoken.drafters import DEFAULT_DRAFTER, RECIPES, TEXT_DRAFTERS
from foretoken.drafters.recipe import options_of, summary
from foretoken.engines.base import FOUND

of_prompt = partial(typer.Option, rich_help_panel="Prompt")
of_answer = partial(typer.Option, rich_help_panel="Answer")
of_draft = partial(typer.Option, rich_help_panel="Drafting")
of_model = partial(typer.Option, rich_help_panel="Model")
of_logs = partial(typer.Option, rich_help_panel="Recorded answers")
of_output = partial(typer.Option, rich_help_panel="Output")

# A line of Markdown for each drafter, with the options that it takes.
ABOUT_DRAFTERS = "Drafter. Its options may follow its name, as in early-exit:layer=4." + "".join(
    f"\n- {name} ({', '.join(one.name for one in options_of(recipe))}): {summary(recipe)}"
    for name, recipe in RECIPES.items()
)
MODELS_OWN = "the model's own"
HISTORY = "FORETOKEN_HISTORY"  # the environment variable that turns the history on

Model = Annotated[str, of_model(help='Model folder, name on the hub, or "tiny", the model in the package.')]
Dtype = Annotated[str, of_model(help='"float32", "bfloat16", "float16", or "auto" for the dtype of the weights.')]
Device = Annotated[
    str | None, of_model(help='Device to run on, such as "cpu" or "cuda".', show_default="a GPU if there is one")
]
ExactOption = Annotated[
    str,
    of_model(
        "--exact",
        help="Whether drafting must keep every bit of the logits; auto: where that is cheap.",
        metavar="auto|on|off",
    ),
]
Background = Annotated[
    str, of_draft(help='Corpus to draft from: "general", the folder of a corpus, or "none".', metavar="NAME")
]
Speculator = Annotated[
    str,
    of_draft(
        help='Folder of heads trained on the model\'s states, "auto" for the one in the model\'s folder, or "none".',
        metavar="FOLDER",
    ),
]
ShowDrafts = Annotated[bool, of_output("--show-drafts", help="Show accepted draft tokens in colour.")]
AsJson = Annotated[bool, of_output("--json", help="Print JSON instead of text.")]
JsonFile = Annotated[Path | None, of_output("--json", help="Write the numbers to this file.")]
HtmlFile = Annotated[Path | None, of_output("--html", help="Write a page with plots to this file.")]


@dataclass(frozen=True)
class PromptOptions:
    """What to answer."""

    stdin: Annotated[
        str | None,
        typer.Argument(metavar="[-]", help="Give - to read the prompt from standard input."),
    ] = None
    prompt: Annotated[list[str] | None, of_prompt(help="Text to continue (repeatable).", metavar="TEXT")] = None
    file: Annotated[list[Path] | None, of_prompt(help="File to continue (repeatable).", metavar="FILE")] = None
    chat: Annotated[bool, of_prompt("--chat", help="Ask the prompt as a chat message instead of continuing it.")] = (
        False
    )


@dataclass(frozen=True)
class AnswerOptions:
    """How to answer. Options that are None follow the model's own generation config."""

    max_new_tokens: Annotated[int, of_answer(help="Largest number of tokens to generate.")] = 256
    temperature: Annotated[
        float | None, of_answer(help="0 decodes greedily, a number above 0 samples.", show_default=MODELS_OWN)
    ] = None
    top_k: Annotated[int | None, of_answer(help="Sample from the k most probable tokens.", show_default=MODELS_OWN)] = (
        None
    )
    top_p: Annotated[
        float | None,
        of_answer(help="Sample from the most probable tokens that sum to this probability.", show_default=MODELS_OWN),
    ] = None
    min_p: Annotated[
        float | None,
        of_answer(help="Drop tokens below this fraction of the largest probability.", show_default=MODELS_OWN),
    ] = None
    repetition_penalty: Annotated[
        float | None, of_answer(help="Values above 1 make repetition less likely.", show_default=MODELS_OWN)
    ] = None
    grammar: Annotated[
        Path | None,
        of_answer(help="File of a grammar that the answer follows, in llama.cpp's GBNF or llguidance's Lark."),
    ] = None
    json_schema: Annotated[Path | None, of_answer(help="File of a JSON schema that the answer follows.")] = None
    stop: Annotated[
        list[str] | None,
        of_answer(help="String that ends the answer (repeatable).", metavar="TEXT"),
    ] = None
    seed: Annotated[
        int | None, of_answer(help="Seed for sampling; the same seed gives the same text.", show_default="random")
    ] = None


@dataclass(frozen=True)
class DraftOptions:
    """What drafts, how much, and from which documents."""

    drafter: Annotated[
        str | None,
        of_draft(
            help=f"{ABOUT_DRAFTERS}\n- none: Plain decoding.",
            metavar="NAME:OPTION=VALUE,...",
            show_default=DEFAULT_DRAFTER,
        ),
    ] = None
    budget: Annotated[
        int | None,
        of_draft(min=0, max=1024, help="Tokens to draft in each step.", show_default="as many as should save time"),
    ] = None
    reference: Annotated[
        list[Path] | None,
        of_draft(help="File that the answer may quote or edit (repeatable).", metavar="FILE"),
    ] = None
    background: Background = "general"
    speculator: Speculator = FOUND


@dataclass(frozen=True)
class ModelOptions:
    """Which model runs, and where."""

    model: Model = "tiny"
    dtype: Dtype = "auto"
    device: Device = None
    exact: ExactOption = "auto"


@dataclass(frozen=True)
class LogOptions:
    """Which recorded answers to replay, and what of them."""

    files: Annotated[
        list[Path],
        typer.Argument(help="JSON lines with prompt and output; plain, .gz or .xz."),
    ]
    tokenizer: Annotated[
        str,
        of_logs(help='tokenizer.json (plain or .gz), model folder, name on the hub, or "tiny".'),
    ]
    limit: Annotated[
        int | None,
        of_logs(min=1, help="Answers to read from each file; those under 16 tokens do not count.", show_default="all"),
    ] = None
    max_output: Annotated[int, of_logs(min=16, help="Tokens to replay from the start of each answer.")] = 400
    max_prompt: Annotated[int, of_logs(min=1, help="Tokens to read from the end of each prompt.")] = 6000
    followups: Annotated[
        bool,
        of_logs("--followups", help="Replay later turns too, each after all text before it."),
    ] = False


@dataclass(frozen=True)
class ReplayOptions:
    """What drafts in a replay, and where the work is done."""

    drafter: Annotated[
        list[str] | None,
        of_draft(
            help=f"Drafter (repeatable): {', '.join(TEXT_DRAFTERS)}, or none. Its options may follow the name.",
            metavar="NAME:OPTION=VALUE,...",
            show_default="all",
        ),
    ] = None
    background: Background = "general"
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes to use.", show_default="one per core")] = None
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster to run on.", metavar="ADDRESS")] = None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options: each field of a dataclass among its parameters becomes an option."""
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name in groups:
            own = get_type_hints(groups[name], include_extras=True)
            options = [(one.name, own[one.name], one.default) for one in fields(groups[name])]
        else:
            options = [(name, hints[name], parameter.default)]
        parameters += [
            inspect.Parameter(
                option,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=hint,
                default=inspect.Parameter.empty if default is MISSING else default,
            )
            for option, hint, default in options
        ]

    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{one.name: given.pop(one.name) for one in fields(group)})
        command(**given)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
