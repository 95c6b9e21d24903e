"""The command line between streams, signals and terminals of every kind: whole or quiet, and with the right status."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping

import pytest

# A command in place of those that take long to load; what surrounds it is the real thing.
COMMAND = """
import sys, types
from foretoken.cli.console import err, out, print_json, write
def app(standalone_mode):
    {body}
sys.modules["foretoken.cli.app"] = types.SimpleNamespace(app=app)
from foretoken.cli import main
main()
"""
ANSWER = "write('answer'); err.print('summary')"
WAIT = 600  # seconds after which a test has failed


def command(body: str) -> list[str]:
    return [sys.executable, "-c", COMMAND.format(body=body)]


def redirected(body: str, redirections: str) -> tuple[int, str, str]:
    """Run a command as a shell does; (exit status, standard output, standard error)."""
    ended = subprocess.run(
        ["bash", "-c", f'"$@" {redirections}', "bash", *command(body)], capture_output=True, text=True, timeout=WAIT
    )
    return ended.returncode, ended.stdout, ended.stderr


CLOSED = "foretoken: Standard output could not be written: it is closed.\n"
FULL = "foretoken: Standard output could not be written: No space left on device.\n"


@pytest.mark.parametrize(
    ("redirections", "status", "out", "err"),
    [
        ("<&-", 0, "answer", "summary\n"),
        ("2>&-", 0, "answer", ""),
        ("2>/dev/full", 0, "answer", ""),
        (">&-", 2, "", CLOSED),
        (">/dev/full", 2, "", FULL),
        ("<&- >&- 2>&-", 2, "", ""),
        (">/dev/full 2>/dev/full", 2, "", ""),
    ],
)
def test_streams_that_are_closed_or_full_end_quietly(redirections, status, out, err):
    assert redirected(ANSWER, redirections) == (status, out, err)


def test_output_that_only_the_interpreters_end_would_write_is_not_lost():
    assert redirected("sys.stdout.write('answer')", ">/dev/full") == (2, "", FULL)
    assert redirected("sys.stdout.write('answer')", "") == (0, "answer", "")


def test_a_command_that_prints_nothing_needs_no_standard_output():
    assert redirected("err.print('summary')", ">&-") == (0, "", "summary\n")
    assert redirected("err.print('summary')", ">/dev/full") == (0, "", "summary\n")


def test_no_file_is_opened_under_the_number_of_a_closed_stream(tmp_path):
    body = (
        f"import os; file = open({str(tmp_path / 'file')!r}, 'w'); os.write(2, b'x' * 9); sys.exit(file.fileno() < 3)"
    )
    assert redirected(body, "<&- >&- 2>&-")[0] == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("read", [0, 1])
def test_a_reader_that_leaves_ends_the_answer_quietly(stream, read):
    """The reader leaves at once, or in the middle of a long answer, whose messages go the same way or another."""
    source, sink = os.pipe()
    if not read:
        os.close(source)
    other = {"stderr": sink} if stream == "stderr" else {"stderr": subprocess.PIPE}
    body = "\n    ".join(["while True:", "    err.print('x' * 9)", "    write('x' * 100_000)"])
    process = subprocess.Popen(command(body), stdout=sink, text=True, **other)
    os.close(sink)
    if read:
        os.read(source, 1)
        os.close(source)
    said = process.communicate(timeout=WAIT)[1] or ""
    assert process.returncode == 1 and set(said) <= {"x", "\n"}


def test_output_that_does_not_wait_is_written_whole():
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    process = subprocess.Popen(command("write('abcdefg' * 100_000)"), stdout=sink, stderr=subprocess.PIPE, text=True)
    os.close(sink)
    with open(source) as file:
        assert file.read() == "abcdefg" * 100_000
    assert process.communicate(timeout=WAIT)[1] == "" and process.returncode == 0


# What a person does at a moment that nobody can hit by waiting: Ctrl-C while a module is imported.
INTERRUPT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from foretoken.cli import main
main()
"""


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("module", ["foretoken.cli.streams", "rich.console", "typer", "numpy", "torch"])
def test_an_interrupt_while_modules_are_imported_is_quiet(module):
    words = ["generate", "--prompt", "a", "--no-history", "--background", "none"]
    code = INTERRUPT.format(module=module)
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=WAIT)
    assert (ended.returncode, ended.stdout, ended.stderr) == (signal.SIGINT + 128, "", "")


def on_a_terminal(body: str, environment: Mapping[str, str | None]) -> str:
    """What a command writes to a terminal."""
    mine, its = pty.openpty()
    merged = {"TERM": "xterm", "NO_COLOR": None} | dict(environment)
    settings = {name: value for name, value in (os.environ | merged).items() if value is not None}
    process = subprocess.Popen(command(body), stdin=its, stdout=its, stderr=its, env=settings)
    os.close(its)
    written = b""
    with contextlib.suppress(OSError):  # what reading gives once nobody holds the other end
        while data := os.read(mine, 1 << 16):
            written += data
    os.close(mine)
    assert process.wait(timeout=WAIT) == 0
    return written.decode()


SHOW = "\n    ".join(
    [
        "with err.status('loading [/red]\\x1b]0;title\\x07'): pass",
        "write('plain '); write('guessed', accepted=True)",
        "err.print('note', style='red')",
    ]
)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": None}, {"TERM": ""}, {"TERM": "unknown"}])
def test_a_terminal_that_obeys_nothing_gets_no_orders(environment):
    written = on_a_terminal(SHOW, environment)
    assert "plain guessed" in written and "note" in written and "\x1b" not in written


def test_accepted_guesses_are_coloured_on_a_terminal_that_shows_colours():
    assert "plain \x1b[1;32mguessed\x1b[0m" in on_a_terminal(SHOW, {})
    assert "plain guessed" in on_a_terminal(SHOW, {"NO_COLOR": "1"})
    for narrow in ("1", "0"):
        assert "guessed" in on_a_terminal(SHOW, {"COLUMNS": narrow, "LINES": "1"})


def test_a_status_shows_names_as_they_are():
    written = on_a_terminal(SHOW, {})
    assert r"loading [/red]\x1b]0;title\x07" in written and "\x1b]0;" not in written
    assert written.isascii() is False and on_a_terminal(SHOW, {"PYTHONIOENCODING": "ascii"}).isascii()


def test_standard_input_that_is_closed_is_a_sentence():
    words = [sys.executable, "-m", "foretoken", "generate", "-"]
    ended = subprocess.run(["bash", "-c", '"$@" <&-', "bash", *words], capture_output=True, text=True, timeout=WAIT)
    said = "foretoken: Standard input could not be read: it is closed.\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", said)


def test_standard_input_that_does_not_wait_is_read_whole(monkeypatch):
    from foretoken.cli.input import read_stdin

    source, sink = os.pipe()
    os.set_blocking(source, False)
    with open(source) as stdin, open(sink, "wb", buffering=0) as writer:
        monkeypatch.setattr(sys, "stdin", stdin)
        threading.Timer(0.1, lambda: (writer.write(b"abc"), writer.close())).start()
        assert read_stdin() == "abc"


def test_a_terminal_as_standard_input_is_told_what_to_do(monkeypatch, capsys):
    from foretoken.cli.input import read_stdin

    mine, its = pty.openpty()
    os.write(mine, b"abc\n\x04")
    with open(its) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert read_stdin() == "abc\n"
    os.close(mine)
    assert "Ctrl-D" in capsys.readouterr().err
