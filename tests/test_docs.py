"""What the README and the documentation show runs as it stands: Python blocks, and ``foretoken`` commands."""

from __future__ import annotations

import json
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from foretoken.cli.app import load
from foretoken.drafters import recipe_of
from helpers.commanding import call

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HUB_MODEL = re.compile(r"Qwen/Qwen2\.5-[\w.]+")
# Files that the pages take for granted, in a folder that each page begins with.
FILES = {
    "prompt.txt": "def area(width, height):",
    "question.txt": "When is the rent due?",
    "lease.txt": "The tenant pays the rent on the first day of each month.",
    "amendment.txt": "The rent is due on the third day.",
    "manual.txt": "Hold the button for ten seconds to reset the device. Release the button.",
    "log.jsonl": json.dumps({"prompt": "Count.", "output": "one two three four five six seven " * 9}) + "\n",
    "answers.jsonl": json.dumps({"output": "Hold the button for ten seconds."}) + "\n",
    "costs.json": json.dumps({"rows": [1, 16], "milliseconds": [20.0, 30.0]}),
}
TOO_LONG = {
    *(("train", kind) for kind in ("mlp-speculator", "blockwise", "medusa", "rescorer")),
    ("check",),
    ("bench", "methods"),
    ("bench", "llama-cpp"),
    ("bench", "speculator"),
    ("bench", "vllm"),
    ("serve",),
}  # minutes, or for ever; their options are checked all the same


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages; those of doctests are run by doctest."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages and not text.startswith(">>>")]


def commands(page: Path) -> list[list[str]]:
    """The words after ``foretoken`` of every command in the shell blocks and recorded sessions of a page."""
    found = []
    for block in blocks(page, "sh", ""):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if "foretoken " in line else []
            if words[:1] == ["torchrun"]:
                words = words[words.index("-m") + 1 :]
            if words[:1] == ["foretoken"]:
                found.append(words[1:])
    return found


def ids(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
WITH_COMMANDS = [page for page in PAGES if commands(page)]


def parsed(words: list[str]) -> tuple[tuple[str, ...], dict[str, object]]:
    """The names of the command, and what its parser makes of the options; it refuses unknown ones."""
    first, *rest = words
    names = [first]
    command = load(first)
    context = typer.Context(command)
    while hasattr(command, "commands"):
        names.append(rest.pop(0))
        command = command.commands[names[-1]]
        context = typer.Context(command, parent=context)
    options, extra, _ = command.make_parser(context).parse_args(rest)
    assert not extra
    return tuple(names), options


@pytest.mark.parametrize("page", WITH_PYTHON, ids=ids(WITH_PYTHON))
def test_the_python_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    """In order and in one namespace; a block that begins with a file's name in a comment is that file, too."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        if file := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / file[1]).write_text(block, encoding="utf-8")
        exec(compile(block, str(page), "exec"), names)
    for name in set(sys.modules) - before:
        if not name.startswith(("foretoken", "torch", "transformers")):
            monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=ids(WITH_COMMANDS))
def test_the_commands_of_a_page_have_these_options(page):
    for words in commands(page):
        _, options = parsed(words)
        if isinstance(options.get("drafter"), str):
            recipe_of(HUB_MODEL.sub("tiny", options["drafter"]))


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=ids(WITH_COMMANDS))
def test_the_quick_commands_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    """In order, with the bundled model in the place of models from the hub, and short answers."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        names, options = parsed(words)
        if names in TOO_LONG or "lookahead_parallel" in options:
            continue
        if str(options.get("model")).endswith(".gguf") and find_spec("llama_cpp") is None:
            continue
        here = ["--jobs", "1"] if names in {("replay",), ("tune",)} else []
        short = ["--max-new-tokens", "4"] if names in {("generate",), ("compare",)} else here
        status, _, said = call(monkeypatch, capsys, *(HUB_MODEL.sub("tiny", word) for word in words), *short)
        assert status == 0, (words, said)


def test_the_programs_and_targets_that_pages_name_exist():
    lines = [line.split() for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    programs = [words[2] for words in lines if words[:2] == ["python", "-m"]]
    targets = [words[1] for words in lines if words[:1] == ["make"]]
    assert programs and targets
    for program in programs:
        assert (ROOT / program.replace(".", "/")).with_suffix(".py").is_file(), program
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    scripts = {words[0] for words in lines if words and words[0].startswith("scripts/")}
    assert all((ROOT / script).is_file() for script in scripts)


def test_an_option_that_does_not_exist_is_found():
    assert parsed(["generate", "--prompt", "a"])[0] == ("generate",)
    with pytest.raises(Exception, match="No such option"):
        parsed(["generate", "--no-such-option"])


def test_the_glossary_names_the_file_of_every_word_and_its_class_stands_there():
    """A stranger finds a concept in the file that bears its name."""
    rows = [line.split("|") for line in (ROOT / "docs/glossary.md").read_text("utf-8").splitlines() if line[:2] == "| "]
    rows = [row for row in rows if row[1].strip() != "word"]
    assert len(rows) > 60
    for _, word, file, meaning, *_ in rows:
        source = ROOT / "src/foretoken" / file.strip(" `")
        code = source.read_text("utf-8")
        for name in re.findall(r"`([A-Z]\w+)", meaning):
            assert re.search(rf"^(class|def) {name}\b", code, re.MULTILINE), f"{word}: no {name} in {file}"
