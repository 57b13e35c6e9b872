"""Errors in the shape that OpenAI's clients know."""

from collections.abc import Mapping
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

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that says it."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The response that says it."""
        return JSONResponse(self.body, self.status, self.headers)


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
