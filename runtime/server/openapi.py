"""What the server answers, as OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0), made from its routes and tables."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.routing import Route

from .errors import ApiError, shape_at
from .protocols.anthropic_requests import CountRequest, MessagesRequest
from .protocols.ollama_requests import OllamaChat, OllamaGenerate, OllamaShow
from .protocols.responses_requests import ResponseRequest, TokensRequest
from .requests import ChatRequest, CompletionRequest, DetokenizeRequest, Part, TokenizeRequest

BODIES: Mapping[str, type[Part]] = MappingProxyType(
    {
        "/v1/chat/completions": ChatRequest,
        "/v1/completions": CompletionRequest,
        "/tokenize": TokenizeRequest,
        "/detokenize": DetokenizeRequest,
        "/v1/responses": ResponseRequest,
        "/v1/responses/input_tokens": TokensRequest,
        "/v1/messages": MessagesRequest,
        "/v1/messages/count_tokens": CountRequest,
        "/api/chat": OllamaChat,
        "/api/generate": OllamaGenerate,
        "/api/show": OllamaShow,
    }
)
"""The bodies of requests, by path."""
_REF = "#/components/schemas/{model}"
_OTHERS = {
    401: "The API key is missing or wrong.",
    403: "The host is not served.",
    404: "There is no such thing.",
    413: "The body is too large.",
    415: "The content type is not application/json.",
    429: "Too many requests are under way; Retry-After says when to try again.",
    500: "The engine failed.",
    501: "It is not implemented, with the reason.",
    503: "The engine is not ready.",
}


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """Return the description of all routes.

    Args:
        routes: of the server; an endpoint's docstring says what it does.
        version: of the program.

    """
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = route.path.replace(":path}", "}")
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _operation(route, path, method)
    info = {"title": "phi3-onnx", "version": version, "description": "A value of null counts as not given."}
    keys = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": info,
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": keys},
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _operation(route: Route, path: str, method: str) -> dict[str, Any]:
    summary = (route.endpoint.__doc__ or "").strip().splitlines()[0]
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()}{path.replace('/', '_')}".replace("{", "").replace("}", ""),
        "tags": [_tag(path)],
        "summary": summary.partition(": ")[2].removesuffix(".") or path,
        "responses": _responses(path, path in BODIES),
    }
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if body := BODIES.get(path):
        schema = {"$ref": _REF.format(model=body.__name__)}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _responses(path: str, body: bool) -> dict[str, Any]:
    error = {"application/json": {"schema": _shape(shape_at(path)(ApiError(400, "")))}}
    told = {"400": "The body is not understood, or asks for something that is not supported."} if body else {}
    told |= {str(status): text for status, text in _OTHERS.items()}
    return {
        "200": {"description": "The answer."},
        **{status: {"description": text, "content": error} for status, text in told.items()},
    }


def _shape(example: Any) -> dict[str, Any]:
    """Return a schema of what looks like an error."""
    if not isinstance(example, dict):
        return {"type": ["string", "null"]}
    properties = {name: _shape(value) for name, value in example.items()}
    return {"type": "object", "properties": properties, "required": list(example)}


def _tag(path: str) -> str:
    if path.startswith("/api/"):
        return "Ollama"
    if path.startswith("/v1/messages"):
        return "Anthropic"
    return "OpenAI" if path.startswith("/v1/") else "Server"


def _schemas() -> dict[str, Any]:
    """Return the schemas of all bodies and their parts; each part tells of its own parameters."""
    _, whole = models_json_schema([(body, "validation") for body in BODIES.values()], ref_template=_REF)
    return whole["$defs"]
