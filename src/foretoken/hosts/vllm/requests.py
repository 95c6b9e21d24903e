"""The requests of an engine as its scheduler tells of them: what each asked for, whose memory it shares, its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from foretoken.core.errors import ModelError, RequestError
from foretoken.hosts.vllm.options import EngineOptions, RequestOptions
from foretoken.hosts.vllm.states import RowFacts
from foretoken.memory.fingerprint import fingerprint
from foretoken.memory.history import History
from foretoken.memory.namespace import Namespace
from foretoken.memory.namespaces import Namespaces

logger = logging.getLogger("foretoken")


@dataclass(frozen=True)
class Request:
    """What is known of a request.

    Args:
        namespace: Whose memory it shares.
        limit: The most tokens of a draft; 0 for none.
        temperature: At which its tokens are chosen; 0 for the likeliest.
    """

    namespace: Namespace
    limit: int
    temperature: float


class Requests:
    """The requests that run in an engine.

    Args:
        options: The engine's.
        namespaces: Where their answers are remembered.
        max_draft: The most tokens of any draft.
    """

    def __init__(self, options: EngineOptions, namespaces: Namespaces, max_draft: int) -> None:
        self._options, self._namespaces, self._max_draft = options, namespaces, max_draft
        self._running: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._running)

    def begin(self, name: str, sampling: Any) -> None:
        """A request is scheduled, perhaps again after it was preempted.

        Args:
            name: Its id.
            sampling: Its ``SamplingParams``; None for one that generates nothing.
        """
        if name in self._running:
            return
        try:
            asked = RequestOptions.read(getattr(sampling, "extra_args", None), self._options.namespace)
        except RequestError as error:  # which the plugin refuses, unless it is kept from being loaded
            logger.warning("A request is not drafted for: %s", error)
            asked = RequestOptions(draft=False)
        limit = min(asked.limit or self._max_draft, self._max_draft) if asked.draft else 0
        temperature = float(getattr(sampling, "temperature", 0.0))
        self._running[name] = Request(self._namespaces.of(asked.namespace), limit, temperature)

    def end(self, names: Iterable[str]) -> None:
        """Requests have ended; what they say is remembered by now."""
        for name in names:
            request = self._running.pop(name, None)
            if request is not None:
                self._namespaces.settle(request.namespace.name)

    def of(self, names: Sequence[str]) -> list[Request]:
        """What is known of some that run."""
        return [self._running[name] for name in names]

    def facts(self, names: Sequence[str]) -> RowFacts:
        """What the drafter is told of the rows of a step."""
        known = self.of(names)
        return RowFacts(list(names), [one.namespace for one in known], [one.limit for one in known])


class Vocabulary:
    """The tokens of vLLM's model, as the memory must know them.

    Args:
        model_config: vLLM's ``ModelConfig``.
    """

    def __init__(self, model_config: Any) -> None:
        self._model_config = model_config
        self.vocab_size = int(model_config.get_vocab_size())

    @cached_property
    def fingerprint(self) -> str:
        """The tokenizer's."""
        return fingerprint(self._tokenizer())

    def batch_encoder(self) -> Callable[[list[str]], list[list[int]]]:
        """Makes tokens of texts, with a tokenizer of its own."""
        tokenizer = self._tokenizer()

        def encode(texts: list[str]) -> list[list[int]]:
            ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
            return ids

        return encode

    def _tokenizer(self) -> Any:
        """A tokenizer that nobody else uses.

        Raises:
            ForetokenError: If the engine was started without one.
        """
        from transformers import AutoTokenizer

        model = self._model_config
        if model.skip_tokenizer_init:
            raise ModelError(
                "A history and a background corpus belong to a tokenizer, and this engine was started with "
                "skip_tokenizer_init: leave one of them out."
            )
        options = {"revision": model.tokenizer_revision, "trust_remote_code": model.trust_remote_code}
        return AutoTokenizer.from_pretrained(model.tokenizer, **options)


def namespaces_of(options: EngineOptions, model_config: Any) -> Namespaces:
    """Where the requests of an engine are remembered.

    Raises:
        ForetokenError: If the background corpus is for another tokenizer, or there is none.
    """
    vocabulary = Vocabulary(model_config)
    history = None
    if options.history:
        _ = vocabulary.fingerprint  # refused now rather than at the first answer
        history = History() if options.history is True else History(Path(options.history))
    return Namespaces(vocabulary, options.background, history)
