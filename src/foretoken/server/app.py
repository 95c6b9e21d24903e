"""The routes: OpenAI's, and those that say how the server is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foretoken.api.language_model import LanguageModel
from foretoken.server.answers import Shared, answers, options_of
from foretoken.server.body import read_json
from foretoken.server.errors import ApiError, as_api_error
from foretoken.server.exchange import Answer, Exchange, refusal
from foretoken.server.keys import ApiKeys
from foretoken.server.metrics import Metrics
from foretoken.server.openapi import describe
from foretoken.server.pages import page
from foretoken.server.replies import Reply
from foretoken.server.scheduler import Scheduler
from foretoken.server.schema import Asked, ChatAsked, CompletionAsked, read_asked
from foretoken.version import __version__

Endpoint = Callable[[Request], Awaitable[Response]]


class Server:
    """What the routes share.

    Args:
        lm: The model.
        model_name: What clients call it.
        keys: Who may ask.
        scheduler: Runs the answers; the application starts and closes it.
        hosts: What requests may call this machine. If None, anything. A page that a user visits could reach a server on
            the user's machine under the name of the page's own host, once its address has been changed to 127.0.0.1.
    """

    def __init__(
        self,
        lm: LanguageModel,
        model_name: str,
        keys: ApiKeys,
        scheduler: Scheduler,
        hosts: Collection[str] | None = None,
    ) -> None:
        self.lm, self.model_name, self.keys, self.scheduler, self._hosts = lm, model_name, keys, scheduler, hosts
        self._shared, self._fingerprint = Shared(lm), f"fp_{lm.engine.fingerprint}"
        self._metrics = Metrics(model_name, scheduler, lm)
        is_calibrated = lm.drafter is not None and lm.drafter.calibrated
        known = lm.costs.as_dict() if is_calibrated else {}
        self._costs = {"rows": list(known), "milliseconds": [1000 * seconds for seconds in known.values()]}

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/v1/models", told(self._models)),
            Route("/v1/models/{name:path}", told(self._model)),
            Route("/v1/completions", told(self._completions), methods=["POST"]),
            Route("/v1/chat/completions", told(self._chat), methods=["POST"]),
            Route("/health", told(self._health)),
            Route("/", told(_page("page.html"))),
            Route("/docs", told(_page("docs.html"))),
            Route("/metrics", told(self._prometheus)),
            Route("/openapi.json", told(self._openapi)),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: _no_route})

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.scheduler.start()
        try:
            yield
        finally:
            self.scheduler.close()

    def _owner(self, request: Request) -> str:
        if self._hosts is not None and request.url.hostname not in self._hosts:
            raise ApiError(403, "The header Host names another machine: use the server's own address.", "wrong_host")
        header = request.headers.get("authorization")
        return self.keys.owner(None if header is None else header.encode("latin-1"))

    async def _models(self, request: Request) -> Response:
        self._owner(request)
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _model(self, request: Request) -> Response:
        self._owner(request)
        self._check_model(request.path_params["name"])
        return JSONResponse(self._card())

    def _card(self) -> dict[str, object]:
        return {
            "id": self.model_name,
            "object": "model",
            "created": STARTED,
            "owned_by": "foretoken",
            "max_model_len": self.lm.engine.max_length,
            "foretoken": {"drafter": str(self.lm.drafter or "none"), "costs": self._costs},
        }

    def _check_model(self, name: str) -> None:
        if name != self.model_name:
            said = f"There is no model {name[:100]!r} here: ask for {self.model_name!r}."
            raise ApiError(404, said, "model_not_found", "model")

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, CompletionAsked)

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, ChatAsked)

    async def _answer(self, request: Request, kind: type[Asked]) -> Response:
        owner = self._owner(request)
        asked = read_asked(kind, await read_json(request))
        self._check_model(asked.model)
        drafter = options_of(self.lm, asked, owner)["drafter"]
        work = answers(self._shared, asked, owner)
        reply = Reply(asked, str(drafter or "none"), self._fingerprint, self._shared.form)
        exchange = Exchange(self.scheduler, owner, work, self._metrics, reply, bool(asked.stream))
        try:
            await exchange.ready()
        except BaseException:
            exchange.cancel()
            raise
        return Answer(exchange, self.scheduler.seconds)

    async def _health(self, request: Request) -> Response:
        waiting, running = self.scheduler.num_waiting, self.scheduler.num_running
        return JSONResponse({"status": "ok", "version": __version__, "running": running, "waiting": waiting})

    async def _prometheus(self, request: Request) -> Response:
        return Response(self._metrics.text(), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(describe())


STARTED = int(time.time())


def told(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose errors are answered in OpenAI's shape."""

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=499)  # which nobody reads
        except Exception as error:
            return refusal(as_api_error(error))

    return answered


def _page(name: str) -> Endpoint:
    ready = page(name)

    async def shown(request: Request) -> Response:
        return ready

    return shown


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:100]
    if error.status_code == 404:
        return refusal(ApiError(404, f"There is nothing at {path!r}.", "not_found"))
    answer = refusal(ApiError(error.status_code, f"{request.method} does not go to {path!r}.", "wrong_method"))
    answer.headers.update(error.headers or {})
    return answer
