"""The command line. Slow imports happen inside ``run``, where Ctrl-C already ends quietly."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130  # 128 and the number of the signal, as shells count
EXTRAS = {  # the libraries that each installs
    "transformers": ("torch", "transformers", "tokenizers"),
    "serve": ("starlette", "uvicorn", "pydantic", "prometheus_client"),
    "gguf": ("gguf",),
}


def main() -> None:
    """Run the command that ``sys.argv`` names and end with its status."""
    try:
        from foretoken.cli.streams import guard

        guard()
        status = run()
    except KeyboardInterrupt:
        status = INTERRUPTED
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))  # Ctrl-C again, while threads are waited for
    sys.exit(status)


def run() -> int:
    """Run the command and return its status: 2 after a bad input, which one sentence names."""
    try:
        from foretoken.cli.app import app
        from foretoken.cli.console import err, plain
        from foretoken.cli.streams import OutputError

        try:
            status = app(standalone_mode=False) or 0
            sys.stdout.flush()
            return int(status)
        except OutputError as error:
            if error.reader_left:
                return 1
            said: str | None = str(error)
        except Exception as error:
            said = sentence(error)
            if said is None:
                raise
        if said:
            err.print(plain(f"foretoken: {' '.join(said.splitlines())}"), style="red")
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def sentence(error: Exception) -> str | None:
    """One sentence about an error that the user can mend. None for any other error, which is ours to mend."""
    from foretoken.core.errors import ForetokenError

    if isinstance(error, ForetokenError):
        return str(error)
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    for extra, libraries in EXTRAS.items():
        if missing in libraries:
            return f"This needs {missing}: pip install 'foretoken[{extra}]'."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which may be missing
        return "There is not enough memory: use a smaller model, a smaller dtype or a shorter text."
    if isinstance(error, OSError):
        where = f"The file {os.fsdecode(error.filename)!r}" if isinstance(error.filename, str | bytes) else "A file"
        return f"{where} could not be used: {error.strerror or error}."
    if hasattr(error, "format_message"):  # typer's own errors, whose class is not public
        usage = str(error.format_message()).rstrip(".")
        command = getattr(getattr(error, "ctx", None), "command_path", "foretoken")
        return f"{usage}; see {command} --help." if usage else ""
    return None
