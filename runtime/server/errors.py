"""Errors, in the shape that the clients of each protocol know."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ...configs import UsageError
from .messages import Refused

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    501: "not_implemented_error",
    503: "service_unavailable_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """What a client is told instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Make one.

        Args:
            status: of HTTP.
            message: what is wrong, for people.
            param: the parameter it is about, such as `messages.0.role`.
            code: what is wrong, for programs.
            headers: to send along.

        """
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


_OVER = re.compile(r"prompt (\d+) tokens \+ (\d+) > context (\d+)")
"""What the runtime says of a prompt that does not fit; Claude Code looks for Anthropic's own words for that."""

Shape = Callable[[ApiError], dict[str, Any]]
"""Returns the JSON object that tells an error in one protocol."""


def openai_shape(error: ApiError) -> dict[str, Any]:
    """Return an error as OpenAI's protocols have it."""
    kind = _TYPES.get(error.status, "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def anthropic_shape(error: ApiError) -> dict[str, Any]:
    """Return an error as Anthropic's protocol has it; its types are fewer than the statuses of HTTP."""
    other = "invalid_request_error" if error.status < 500 else "api_error"
    message = error.message
    if found := _OVER.match(message):
        prompt, wanted, context = found.groups()
        over = f"prompt is too long: {prompt} tokens > {context} maximum"
        both = f"input length and `max_tokens` exceed context limit: {prompt} + {wanted} > {context}"
        message = f"{over if int(prompt) >= int(context) else both}; {found.string[found.end() :].lstrip('; ')}"
    return {"type": "error", "error": {"type": _ANTHROPIC_TYPES.get(error.status, other), "message": message}}


def ollama_shape(error: ApiError) -> dict[str, Any]:
    """Return an error as Ollama's protocol has it."""
    return {"error": error.message}


def shape_at(path: str) -> Shape:
    """Return the shape of errors at a path."""
    if path == "/api" or path.startswith("/api/"):
        return ollama_shape
    return anthropic_shape if path == "/v1/messages" or path.startswith("/v1/messages/") else openai_shape


def response(error: ApiError, path: str) -> JSONResponse:
    """Return the response that tells an error to whoever asked at a path."""
    return JSONResponse(shape_at(path)(error), error.status, error.headers)


def queue_full(reason: str, seconds: int = 1) -> ApiError:
    """Return what a client is told where too many wait: it may try again after so many seconds."""
    return ApiError(
        429, f"{reason}; try again in {seconds} s", code="queue_full", headers={"Retry-After": str(seconds)}
    )


def unavailable(message: str) -> ApiError:
    """Return the error for an engine that is not there just now."""
    return ApiError(503, message, code="engine_unavailable", headers={"Retry-After": "2"})


def api_error(problem: Exception | Refused) -> ApiError:
    """Return what a client is told of a problem, as a response of its own and within a stream alike."""
    if isinstance(problem, ApiError):
        return problem
    if isinstance(problem, Refused):
        return _refusal(problem)
    if isinstance(problem, UsageError):
        return ApiError(400, str(problem), code="invalid_value")
    if isinstance(problem, HTTPException):
        return ApiError(problem.status_code, problem.detail, headers=problem.headers)
    return ApiError(500, "the server met an error that it does not know; its log has the details")


def _refusal(refused: Refused) -> ApiError:
    if refused.kind == "stopped":
        return unavailable(refused.message)
    if refused.kind == "engine":
        return ApiError(500, refused.message, code="engine_error")
    code = "context_length_exceeded" if refused.kind == "context" else "invalid_value"
    return ApiError(400, refused.message, code=code)
