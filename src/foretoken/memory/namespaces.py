"""The namespaces of a model: made when asked for, loaded in the background, forgotten if they take too much."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol
from weakref import WeakSet, WeakValueDictionary

from foretoken.core.errors import ForetokenError, RequestError
from foretoken.memory.corpus.general import general_background
from foretoken.memory.history import History
from foretoken.memory.namespace import Namespace
from foretoken.ngrams.background import Background
from foretoken.ngrams.shared import ANSWERS_MAX_BYTES, SharedNgrams
from foretoken.texts import is_text

GENERAL = "general"
BYTES_PER_TOKEN = 128  # of the statistics, about
MAX_BYTES = 256 * 2**20  # of the memories of all namespaces together
EXIT_SECONDS = 2.0  # that the interpreter waits for a thread that loads; it looks up far more often
logger = logging.getLogger("foretoken")


class Vocabulary(Protocol):
    """What a memory must know of a model's tokens; every engine is one."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    def batch_encoder(self) -> Callable[[list[str]], list[list[int]]]: ...


class Namespaces:
    """The namespaces of a model, filled in the background from a history and a corpus.

    Nobody waits for what is loaded. Beyond ``max_bytes`` the namespaces that were not used for longest are forgotten,
    except those whose answers are running. One with a history is loaded again when it is asked for.

    Args:
        vocabulary: The model's tokens.
        background: "general" for the corpus that comes with the package, the folder of a corpus that ``foretoken corpus
            build`` made, or None.
        history: Where answers are kept between runs, or None.
        max_bytes: The most that the namespaces may take together. The one used last may take it alone.

    Raises:
        ForetokenError: If the folder holds no corpus for this tokenizer.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        background: str | Path | None = None,
        history: History | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._vocabulary, self._history, self._max_bytes = vocabulary, history, max_bytes
        self._by_namespace: OrderedDict[str, Namespace] = OrderedDict()  # the one used last comes last
        self._num_bytes: dict[str, int] = {}  # of each of these
        self._alive: WeakValueDictionary[str, Namespace] = WeakValueDictionary()  # with those that an answer uses
        # An answer that is thrown away may end, and settle, wherever garbage is collected, such as here.
        self._lock = threading.RLock()
        self._background: Background | None = None
        self._threads: list[threading.Thread] = []
        self._loading: set[str] = set()  # namespaces
        self._general = background == GENERAL  # whether that corpus is still to come
        self._stopped = False
        if background is not None and not self._general:
            self._background = Background.open(background, self.fingerprint)
        _ALL.add(self)
        if self._general:
            self._start(self._load_general)

    @property
    def fingerprint(self) -> str:
        """The vocabulary's."""
        return self._vocabulary.fingerprint

    def of(self, name: str | None) -> Namespace:
        """The namespace of this name. If None, a new one that is not shared.

        Raises:
            ForetokenError: As ``check_namespace``.
        """
        check_namespace(name)
        with self._lock:
            if self._general and not self._threads:  # in a forked child, which has not its parent's threads
                self._start(self._load_general)
            if name is None:
                return Namespace(background=self._background)
            namespace = self._alive.get(name)
            if namespace is None:
                namespace = self._alive[name] = self._new(name)
            self._by_namespace[name] = namespace
            self._by_namespace.move_to_end(name)
            self.settle(name)
            return namespace

    def _new(self, name: str) -> Namespace:
        if self._history is None:
            return Namespace(name, self._background)
        return Namespace(name, self._background, load=partial(self._load, name), write=partial(self._write, name))

    def settle(self, name: str | None) -> None:
        """Measure a namespace after an answer, and forget the least recently used if all take too much."""
        with self._lock:
            if name is None or name not in self._by_namespace:
                return
            self._num_bytes[name] = self._by_namespace[name].nbytes + sys.getsizeof(name)
            while len(self._by_namespace) > 1 and sum(self._num_bytes.values()) > self._max_bytes:
                oldest, _ = self._by_namespace.popitem(last=False)
                del self._num_bytes[oldest]

    def sizes(self) -> dict[str, int]:
        """The bytes that each namespace took when it was used last."""
        with self._lock:
            return dict(self._num_bytes)

    def wait(self) -> None:
        """Wait until everything that is loaded in the background is there."""
        for thread in list(self._threads):
            thread.join()

    def _start(self, load: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=load, args=arguments, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # there are too many threads, or the interpreter ends
            logger.warning("Drafting goes on without what was to be loaded: %s.", error)
            return
        self._threads = [*(thread for thread in self._threads if thread.is_alive()), thread]

    def _load_general(self) -> None:
        try:
            background = general_background(self._encoder(), self.fingerprint, progress=self._go_on)
        except _StoppedError:
            return
        except Exception as error:  # whatever a tokenizer raises: answers do not depend on it
            self._general = False
            reason = str(error) if isinstance(error, ForetokenError) else f"The background corpus failed: {error!r}."
            logger.warning("%s Drafting goes on without it.", reason)
            return
        with self._lock:
            self._background, self._general = background, False
            namespaces = list(self._alive.values())
        for namespace in namespaces:
            namespace.use(background)

    def _write(self, name: str, answer: Sequence[int]) -> None:
        assert self._history is not None
        self._history.add(name, self.fingerprint, answer)

    def _load(self, name: str, ngrams: SharedNgrams) -> None:
        with self._lock:
            self._loading.add(name)
            self._start(self._load_answers, name, ngrams)

    def _load_answers(self, name: str, ngrams: SharedNgrams) -> None:
        assert self._history is not None
        limit = self._vocabulary.vocab_size
        try:
            for answer in self._history.answers(name, self.fingerprint, ANSWERS_MAX_BYTES // BYTES_PER_TOKEN):
                if self._stopped:
                    return
                if answer.size and 0 <= answer.min() <= answer.max() < limit:
                    ngrams.add(answer)
        except Exception as error:  # such as one of a strict history: answers do not depend on it
            logger.warning("The history could not be read, and drafting goes on without it: %s", error)
        self._loading.discard(name)
        self.settle(name)

    def _encoder(self) -> Callable[[list[str]], list[list[int]]]:
        """Makes tokens of texts, and looks up in between whether it is to stop."""
        encode_some = self._vocabulary.batch_encoder()

        def encode(texts: list[str]) -> list[list[int]]:
            ids: list[list[int]] = []
            for start in range(0, len(texts), 128):
                self._go_on()
                ids += encode_some(texts[start : start + 128])
            return ids

        return encode

    def _go_on(self, *_: object) -> None:
        """Called now and then while a corpus is built.

        Raises:
            _StoppedError: If it is to stop.
        """
        if self._stopped:
            raise _StoppedError

    def stop_loading(self) -> None:
        """Let the threads end soon: the interpreter does."""
        self._stopped = True

    def after_fork(self) -> None:
        """Repair a forked child, which lacks its parent's threads: what they were loading is loaded again."""
        self._lock, self._threads = threading.RLock(), []
        for name in self._loading:
            self._alive.pop(name, None)
            self._by_namespace.pop(name, None)
            self._num_bytes.pop(name, None)
        self._loading = set()


class _StoppedError(Exception):
    """The interpreter ends; the next one goes on with the build."""


_ALL: WeakSet[Namespaces] = WeakSet()


@atexit.register
def _end() -> None:
    """A thread that is at work while the interpreter is taken apart could crash it."""
    threads = [thread for memories in list(_ALL) for thread in memories._threads]
    for memories in list(_ALL):
        memories.stop_loading()
    give_up_at = time.monotonic() + EXIT_SECONDS
    try:
        for thread in threads:
            thread.join(max(0.0, give_up_at - time.monotonic()))
    except KeyboardInterrupt:
        pass  # whoever presses Ctrl-C does not want to wait


def _after_fork() -> None:
    for memories in list(_ALL):
        memories.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def check_namespace(namespace: object) -> None:
    """Refuse what cannot name a namespace.

    Raises:
        ForetokenError: If it is neither None nor a text of at least one character.
    """
    if namespace is None:
        return
    if not is_text(namespace):
        raise RequestError(f"The namespace {namespace!r} is no text: give a name, or None to remember nothing.")
    if not namespace:
        raise RequestError("The namespace is empty: give a name, or None to remember nothing.")
