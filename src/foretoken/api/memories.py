"""What a language model remembers of its answers, a memory for each namespace, and where that is kept."""

from __future__ import annotations

import copy
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from foretoken.core.errors import ForetokenError
from foretoken.corpus.general import general_background
from foretoken.drafters.background import Background
from foretoken.drafters.memory import ANSWERS_MAX_BYTES, Memory
from foretoken.fingerprint import fingerprint
from foretoken.history import History

GENERAL = "general"
BYTES_PER_TOKEN = 128  # of the statistics, about
logger = logging.getLogger("foretoken")


class Memories:
    """The memories of a model's namespaces, filled in the background from a history and a corpus.

    Args:
        tokenizer: The model's.
        background: "general" for the corpus that comes with the package, the folder of a store that ``foretoken corpus
            build`` made, or None.
        history: Where answers are kept between runs, or None.

    Raises:
        ForetokenError: If the folder holds no store for this tokenizer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, background: str | Path | None, history: History | None
    ) -> None:
        self._tokenizer, self._history = tokenizer, history
        self._by_namespace: dict[str, Memory] = {}
        self._lock = threading.Lock()
        self._background: Background | None = None
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        # A thread that is at work while the interpreter is taken apart would crash it.
        weakref.finalize(self, _end, self._stop, self._threads)
        if background == GENERAL:
            self._start(self._load_general)
        elif background is not None:
            self._background = Background.open(background, self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """The tokenizer's."""
        return fingerprint(self._tokenizer)

    def of(self, namespace: str | None) -> Memory:
        """The memory of a namespace; a new one that nobody else has where None.

        Raises:
            ForetokenError: If the namespace is no text.
        """
        if namespace is not None and (not isinstance(namespace, str) or not is_text(namespace)):
            raise ForetokenError(f"The namespace {namespace!r} is no text: give a name, or None to remember nothing.")
        with self._lock:
            if namespace is None:
                return Memory(self._background)
            if namespace not in self._by_namespace:
                self._by_namespace[namespace] = Memory(self._background)
                if self._history is not None:
                    self._start(self._load_answers, namespace)
            return self._by_namespace[namespace]

    def keep(self, namespace: str | None, answer: Sequence[int]) -> None:
        """Write an answer to the history; the memory has it from the drafter."""
        if namespace is not None and self._history is not None:
            self._history.add(namespace, self.fingerprint, answer)

    def wait(self) -> None:
        """Until all that is loaded in the background is there."""
        for thread in self._threads:
            thread.join()

    def _start(self, load: Callable[..., None], *arguments: str) -> None:
        thread = threading.Thread(target=load, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _load_general(self) -> None:
        try:
            background = general_background(self._encoder(), self.fingerprint, progress=self._go_on)
        except _StoppedError:
            return
        except Exception as error:  # whatever a tokenizer raises: answers do not depend on it
            reason = str(error) if isinstance(error, ForetokenError) else f"The background corpus failed: {error!r}."
            logger.warning("%s Drafting goes on without it.", reason)
            return
        with self._lock:
            self._background = background
            for memory in self._by_namespace.values():
                memory.use(background)

    def _load_answers(self, namespace: str) -> None:
        assert self._history is not None
        memory = self._by_namespace[namespace]
        limit = len(self._tokenizer)
        for answer in self._history.answers(namespace, self.fingerprint, ANSWERS_MAX_BYTES // BYTES_PER_TOKEN):
            if self._stop.is_set():
                return
            if answer.size and answer.max() < limit:
                memory.add(answer)

    def _encoder(self) -> Callable[[list[str]], list[list[int]]]:
        """Makes tokens of texts, with a tokenizer of its own: a fast one cannot be set and used at once by two."""
        own: list[PreTrainedTokenizerBase] = []

        def encode(texts: list[str]) -> list[list[int]]:
            own[:] = own or [copy.deepcopy(self._tokenizer)]
            ids: list[list[int]] = []
            for start in range(0, len(texts), 1024):
                self._go_on()
                some = texts[start : start + 1024]
                ids += own[0](some, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            return ids

        return encode

    def _go_on(self, *_: object) -> None:
        """Called now and then while a corpus is built.

        Raises:
            _StoppedError: If it is to stop.
        """
        if self._stop.is_set():
            raise _StoppedError


class _StoppedError(Exception):
    """The interpreter ends; the next one goes on with the build."""


def _end(stop: threading.Event, threads: list[threading.Thread]) -> None:
    stop.set()
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join()


def is_text(text: str) -> bool:
    """Whether it can be kept as UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
