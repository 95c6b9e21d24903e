"""What went wrong, in the shape in which OpenAI's API says it."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from foretoken.core.errors import ModelError, RequestError

logger = logging.getLogger("foretoken")


class ApiError(Exception):
    """A request that gets no answer.

    Args:
        status: The HTTP status.
        message: One sentence that says what is wrong and what to do.
        code: A word for programs.
        param: The field at fault, if it is one.
        retry_after: Seconds after which to try again, if that helps.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of any error. One that is ours to mend is logged by its kind and place alone.

    The text of an unforeseen error may hold a prompt, so that it goes neither to the log nor to the client.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        code = "context_length_exceeded" if "context holds" in str(error) else None
        return ApiError(400, str(error), code)
    if isinstance(error, ModelError):
        return ApiError(500, str(error), "model_error")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which may be missing
        return ApiError(503, "There is not enough memory for this request: shorten it.", "out_of_memory")
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" at {frame[0].filename}:{frame[0].lineno}" if frame else ""
    logger.error("A request failed by a fault of the server's: %s%s.", type(error).__name__, place)
    return ApiError(500, "The server has failed at this request; its log says where.", "internal_error")
