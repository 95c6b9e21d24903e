"""The JSON body of a request, read with limits."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, NoReturn

from starlette.requests import Request

from foretoken.server.errors import ApiError

MAX_BYTES = 2**20  # whose text takes about a second to make tokens of, while the others wait
MAX_DEPTH = 64
HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # of a character beyond 16 bits, whose other half may be missing
SECONDS = 30.0  # that a body may take to come


async def read_json(request: Request) -> Any:
    """The value that a request's body holds.

    A body must say that it is JSON: a page of another origin cannot, so no page that a user visits can ask a server on
    the user's machine.

    Raises:
        ApiError: If it is too large, too slow, no JSON, or nested too deep.
        ClientDisconnect: If the client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, 'The body is not said to be JSON: send the header "Content-Type: application/json".')
    try:
        async with asyncio.timeout(SECONDS):
            body = await _read(request)
    except TimeoutError:
        raise ApiError(408, f"The body has not come within {SECONDS:.0f} seconds: send it sooner.") from None
    return parse(body)


def parse(body: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ApiError: If it is no JSON, has a number that is none, or is nested too deep.
    """
    try:
        value = json.loads(body, parse_constant=_refuse)
        if HALF.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # of which UnicodeDecodeError is one
        raise ApiError(400, "The body is not valid JSON of UTF-8 text.", "invalid_json") from None
    if _is_deep(value):
        raise _too_deep()
    return value


async def _read(request: Request) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BYTES:
        raise _too_large()
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BYTES:
            raise _too_large()
    return bytes(body)


def _is_deep(value: Any) -> bool:
    """Whether a value has lists or objects within each other beyond the limit."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _too_deep() -> ApiError:
    return ApiError(400, f"The body is nested more than {MAX_DEPTH} deep: send a flatter one.", "invalid_json")


def _too_large() -> ApiError:
    return ApiError(413, f"The body has more than {MAX_BYTES} bytes: send a smaller one.", "body_too_large")
