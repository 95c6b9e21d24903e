"""What commands read: prompts, documents, options of an answer, models and corpora."""

from __future__ import annotations

import errno
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import foretoken
from foretoken.cli.console import err
from foretoken.cli.options import (
    HISTORY,
    AnswerOptions,
    DraftOptions,
    ModelOptions,
    PromptOptions,
    ReplayOptions,
)
from foretoken.core.budget import FixedBudget
from foretoken.core.errors import RequestError
from foretoken.core.numbers import real
from foretoken.drafters import DEFAULT_DRAFTER, TEXT_DRAFTERS, recipe_of
from foretoken.engines import engine_module, import_engine
from foretoken.engines.base import Exact
from foretoken.texts import NUL, encoding_of, is_text, read_text

if TYPE_CHECKING:
    from foretoken.api.language_model import LanguageModel
    from foretoken.api.options import Options, Prompt
    from foretoken.drafters import Recipe

# The files of a model's folder, and of a corpus.
PARTS = (
    "*config.json",
    "*token*.json",
    "*vocab*",
    "*.safetensors*",
    "*.bin*",
    "*.npz",
    "*.model",
    "*.txt",
    "*.jinja",
    "meta.json",
    "*.npy",
)


def read_prompts(asked: PromptOptions) -> list[tuple[str, str]]:
    """The prompts of a command as (name, text).

    Raises:
        ForetokenError: If there is none, or one cannot be read.
    """
    prompts = [(f"prompt {i}", text) for i, text in enumerate(asked.prompt or [], start=1)]
    prompts += [(path.name, read_text(path)) for path in asked.file or []]
    if asked.stdin == "-":
        prompts.append(("standard input", read_stdin()))
    elif asked.stdin is not None:
        raise RequestError(
            f"{asked.stdin!r} is not an option: give a prompt with --prompt, a file with --file, or - alone."
        )
    if not prompts:
        raise RequestError("There is no prompt: give one with --prompt, a file with --file, or - for standard input.")
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
        raise RequestError(f"Standard input could not be read: it is not {name} text.") from error
    except OSError as error:
        reason = "it is closed" if error.errno == errno.EBADF else error.strerror
        raise RequestError(f"Standard input could not be read: {reason}.") from error
    if "\0" in text:
        raise RequestError(f"Standard input could not be read: it has {NUL}.")
    return text


def as_prompt(text: str, chat: bool) -> Prompt:
    """The text to continue, or the conversation to answer."""
    return [{"role": "user", "content": text}] if chat and text else text


def read_options(answer: AnswerOptions, drafting: DraftOptions) -> Options:
    """The options that were given, with the documents to draft from. The others follow the model's own config.

    Raises:
        ForetokenError: If a number is not finite, a stop string holds bytes that are no text, or a document cannot be
            read.
    """
    options: dict[str, object] = {name: value for name, value in vars(answer).items() if value is not None}
    for name, value in options.items():
        if isinstance(value, float):
            real(f"--{name.replace('_', '-')}", value)
    for text in answer.stop or []:
        if not is_text(text):
            raise RequestError("A stop string holds bytes that are no text: give it as UTF-8.")
    if answer.grammar is not None:
        options["grammar"] = read_text(answer.grammar)
    if answer.json_schema is not None:
        options["json_schema"] = read_schema(answer.json_schema)
    if drafting.budget is not None:
        options["budget"] = FixedBudget(drafting.budget)
    if drafting.reference:
        options["references"] = [read_text(path) for path in drafting.reference]
    return options  # type: ignore[return-value]


def read_schema(path: Path) -> dict[str, object]:
    """A JSON schema.

    Raises:
        ForetokenError: If the file cannot be read, or holds no JSON object.
    """
    try:
        schema = json.loads(read_text(path))
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise RequestError(f"The file {str(path)!r} holds no JSON schema: give a JSON object.")
    return schema


def chosen_history(given: Path | None) -> bool | Path:
    """The file that keeps answers: the one that was given, or what the environment variable says.

    Returns:
        A file; True for the user's usual one, which "1" stands for; False for none.
    """
    chosen = os.environ.get(HISTORY, "") if given is None else str(given)
    return chosen == "1" if chosen in ("", "0", "1") else Path(chosen)


def load_model(where: ModelOptions, drafting: DraftOptions, history: bool | Path = False) -> LanguageModel:
    """The model that a command names, with its drafter.

    Raises:
        ForetokenError: As ``foretoken.load``, and if the device is an empty string.
    """
    exact = read_exact(where.exact)
    with loading(where):
        lm = foretoken.load(
            where.model,
            dtype=where.dtype,
            device=where.device,
            drafter=DEFAULT_DRAFTER if drafting.drafter is None else drafting.drafter,
            background=None if drafting.background == "none" else drafting.background,
            history=history,
            speculator=drafting.speculator,
            exact=exact,
        )
        lm.engine.settle_threads()
    compile_first(lm.drafter)
    return lm


EXACT: dict[str, Exact] = {"auto": "auto", "on": True, "off": False}


def read_exact(given: str) -> Exact:
    """The setting of exactness that --exact names.

    Raises:
        ForetokenError: If it names none.
    """
    if given not in EXACT:
        raise RequestError(f"--exact is {given!r:.100}: give auto, on or off.")
    return EXACT[given]


def compile_first(recipe: Recipe | None) -> None:
    """Compile what a drafter runs, so that no answer's time has that in it; say so if it takes a while."""
    if recipe is None:
        return
    started = time.perf_counter()
    with err.status("compiling the inner loops, once"):
        recipe.prepare()
    seconds = time.perf_counter() - started
    if seconds > 2:
        err.print(f"compiled the inner loops, once: {seconds:.0f} s", style="dim")


@contextmanager
def loading(where: ModelOptions) -> Iterator[None]:
    """Say that a model is being loaded, without the library's own progress bars and advice.

    Raises:
        ForetokenError: If the device is an empty string.
    """
    if where.device == "":
        raise RequestError('The device is empty: name one, such as "cpu", or leave out --device.')
    with err.status(f"loading {where.model}"):
        import_libraries(where.model)
        yield


def import_libraries(model: str) -> None:
    """Import what runs a model, once, without garbage collection before it is done.

    The collector would walk over half a million objects again and again, which took a sixth of the time. No later
    collection looks at these objects either.

    Raises:
        ForetokenError: If the engine's library is missing.
    """
    if engine_module(model) not in sys.modules:
        gc.disable()
        try:
            import_engine(model)
        finally:
            gc.freeze()
            gc.enable()
    if "transformers" in sys.modules:
        silence_transformers()


def silence_transformers() -> None:
    """Turn off the library's progress bars and advice."""
    try:
        from transformers.utils import logging
    except ModuleNotFoundError:  # other engines do without; one that does not says so
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def corpus_of(replaying: ReplayOptions, tokenizer: str) -> str | None:
    """The folder of the corpus that a replay's drafters draft from. None if no drafter does.

    Raises:
        ForetokenError: As ``background_folder``, and if a folder was named and no drafter drafts from it.
    """
    recipes = [recipe_of(drafter) for drafter in replaying.drafter or TEXT_DRAFTERS]
    if not any(recipe is not None and recipe.remembers for recipe in recipes):
        if replaying.background not in ("general", "none"):
            raise RequestError("None of the drafters drafts from a corpus: leave out --background.")
        return None
    return background_folder(replaying.background, tokenizer)


def background_folder(name: str, tokenizer: str) -> str | None:
    """The folder of a corpus cut with this tokenizer, built first if it is "general". None if it is "none".

    Raises:
        ForetokenError: If there is no such folder, or it was built with another tokenizer.
    """
    if name == "none":
        return None
    from foretoken.memory.corpus.general import general_folder
    from foretoken.memory.fingerprint import fingerprint
    from foretoken.ngrams.background import Background
    from foretoken.tokenizing import batch_encoder, load_tokenizer

    loaded = load_tokenizer(tokenizer)
    if name != "general":
        if not os.path.isdir(name):
            raise RequestError(f'There is no folder {name!r} of a corpus: give one, or "general", or "none".')
        Background.open(name, fingerprint(loaded))
        return name
    with err.status("cutting the background corpus with this tokenizer, once"):
        return str(general_folder(batch_encoder(loaded), fingerprint(loaded)))


def read_from(name: str) -> list[Path]:
    """The files that a command reads when it is given this tokenizer, model or corpus; none where it is no file's name.

    Of a folder those that make up a model or a corpus, whatever else may lie there.
    """
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return [file for pattern in PARTS for file in path.glob(pattern)]
    return [path] if os.path.isfile(path) else []
