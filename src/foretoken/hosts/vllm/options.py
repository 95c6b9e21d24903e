"""What may be said to our drafter within vLLM: for the engine at its start, and for each request. No numba in here.

An engine's options are ``additional_config["foretoken"]``, a request's are ``extra_args["foretoken"]``: an object, or
its JSON in a string, since vLLM's HTTP server takes no objects in ``vllm_xargs``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from foretoken.core.errors import RequestError
from foretoken.core.numbers import whole
from foretoken.hosts.vllm.settings import MAX_DRAFT

KEY = "foretoken"
MAX_NAME = 256  # characters of a namespace


@dataclass(frozen=True)
class EngineOptions:
    """What holds for all requests of an engine.

    Args:
        speculator: The folder of trained heads for the target; "auto" for the folder "speculator" within the target's
            own; None for none.
        history: The file that keeps answers from one process to the next, or True for the usual one; None for none.
        background: The corpus to draft from: "general", the folder of one of ``foretoken corpus build``, or None.
        namespace: The one of requests that name none. None means that they share nothing.
    """

    speculator: str | None = None
    history: str | bool | None = None
    background: str | None = None
    namespace: str | None = "default"

    @classmethod
    def read(cls, additional_config: object) -> Self:
        """The options of an engine's ``additional_config``.

        Raises:
            ForetokenError: If one is unknown or has a wrong value.
        """
        given = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        options: Self = _read(cls, given, f"additional_config[{KEY!r}]")
        for name in ("speculator", "background"):
            _check_text(name, getattr(options, name))
        if not isinstance(options.history, bool | None):
            _check_text("history", options.history)
        _check_text("namespace", options.namespace)
        return options


@dataclass(frozen=True)
class RequestOptions:
    """What holds for one request.

    Args:
        draft: Whether it is drafted for.
        limit: The most tokens to draft in a step; None for the engine's ``num_speculative_tokens``.
        namespace: Which earlier answers to draft from, and where to remember this one. None for neither.
    """

    draft: bool = True
    limit: int | None = None
    namespace: str | None = None

    @classmethod
    def read(cls, extra_args: Mapping[str, Any] | None, namespace: str | None = None) -> Self:
        """The options of a request's ``extra_args``.

        Args:
            extra_args: Those of ``SamplingParams``.
            namespace: Of a request that names none.

        Raises:
            ForetokenError: If one is unknown or has a wrong value.

        >>> RequestOptions.read({"foretoken": '{"limit": 4}'})
        RequestOptions(draft=True, limit=4, namespace=None)
        """
        given = (extra_args or {}).get(KEY)
        options: Self = _read(cls, given, f"extra_args[{KEY!r}]", namespace=namespace)
        if not isinstance(options.draft, bool):
            raise RequestError(f"draft is {options.draft!r:.100} in the request's {KEY!r}: give true or false.")
        if options.limit is not None:
            options = replace(options, limit=whole(f"limit in the request's {KEY!r}", options.limit, 1, MAX_DRAFT))
        _check_text("namespace", options.namespace)
        if options.namespace is not None and len(options.namespace) > MAX_NAME:
            raise RequestError(f"The namespace has {len(options.namespace)} characters: give at most {MAX_NAME}.")
        return options


def _read(kind: type[Any], given: Any, where: str, **defaults: Any) -> Any:
    """Options of a kind.

    Raises:
        ForetokenError: If they are no object, or have a key that is unknown.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise RequestError(f"{where} is {given!r:.100}, which is no JSON: give an object.") from error
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise RequestError(f"{where} is {given!r:.100}: give an object.")
    known = [field.name for field in fields(kind)]
    if unknown := [key for key in given if key not in known]:
        raise RequestError(f"{where} has {unknown[0]!r:.100}, which is unknown: give {', '.join(known)}.")
    return kind(**{**defaults, **given})


def _check_text(name: str, value: object) -> None:
    """Refuse what is neither a text nor None.

    Raises:
        ForetokenError: If it is.
    """
    if value is not None and not (isinstance(value, str) and value):
        raise RequestError(f"{name} is {value!r:.100}: give a text, or null for none.")
