"""The description of the API, made from the models of its requests."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from foretoken.server.schema import ChatAsked, CompletionAsked
from foretoken.version import __version__

REFERENCE = "#/components/schemas/{model}"
ERRORS = {
    "400": "The request cannot be honoured; the message says why.",
    "401": "The API key is missing or unknown.",
    "404": "There is no such model.",
    "413": "The body is too large.",
    "429": "The queue is full; Retry-After says when to come again.",
    "504": "The answer was not done within the time limit.",
}


def describe() -> dict[str, Any]:
    """The API in OpenAPI 3.1."""
    kinds: list[tuple[type[BaseModel], JsonSchemaMode]] = [(CompletionAsked, "validation"), (ChatAsked, "validation")]
    _, schemas = models_json_schema(kinds, ref_template=REFERENCE)
    paths: dict[str, Any] = {
        "/v1/models": _get("The model that answers."),
        "/v1/completions": _post("Continue a text.", CompletionAsked.__name__),
        "/v1/chat/completions": _post("Answer a conversation.", ChatAsked.__name__),
        "/health": _get("Whether the server runs, and how many requests it has."),
        "/metrics": _get("What the server counts, for Prometheus."),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Foretoken", "version": __version__, "description": "OpenAI's API, with drafting."},
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }


def _get(summary: str) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": {"200": {"description": "What it says."}}}}


def _post(summary: str, model: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": REFERENCE.format(model=model)}}}
    responses = {"200": "The answer, or its chunks as server-sent events."} | ERRORS
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": content},
            "responses": {status: {"description": said} for status, said in responses.items()},
        }
    }
