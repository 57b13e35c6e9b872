"""What every request has to pass before it is looked at: the host it was sent to, and the key it brings."""

import hmac
import logging
import re
import secrets
import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, response
from .logs import REQUEST_ID
from .metrics import Metrics
from .settings import Settings

REQUEST_ID_HEADER = "X-Request-Id"
_ACCESS = logging.getLogger(f"{__name__}.access")
# A client's own id goes into logs and headers as it is.
_TAKEN = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_OPEN_PATHS = ("/", "/docs", "/health", "/openapi.json")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """ASGI middleware: refuses foreign hosts and wrong keys."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        # A page of another site can make a browser send requests here under a name of its own (DNS rebinding). Behind
        # a loopback address nobody else has a reason to use another name; elsewhere the names are not known.
        self._hosts = {*_LOOPBACK, settings.host, *settings.allowed_hosts} if settings.local else None
        self._key = settings.api_key.encode() if settings.api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] == "http":
            try:
                self._check(scope["path"], Headers(scope=scope))
            except ApiError as error:
                await response(error, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        host = _without_port(headers.get("host", ""))
        if self._hosts is not None and host.lower() not in self._hosts:
            raise ApiError(
                403, f"host {host!r} is not served here; if it should be, start with --allow-host {host}", code="host"
            )
        if self._key is None or path in _OPEN_PATHS:
            return
        # Headers come as Latin-1, whatever was meant: this gives back the bytes that were sent.
        if not any(hmac.compare_digest(key.strip().encode("latin-1"), self._key) for key in _keys(headers)):
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as header: Authorization: Bearer <key>",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _keys(headers: Headers) -> list[str]:
    """Return the keys that a request brings: as bearer token, or in the header of Anthropic's protocol."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return [*([token] if scheme.lower() == "bearer" else []), *headers.getlist("x-api-key")]


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() and (":" not in name or name.startswith("[")) else host


class RequestIds:
    """ASGI middleware: gives each request an id, or takes the client's, returns it, and logs the request when it ends.

    What was asked and answered is in no log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on under its id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        number = given if _TAKEN.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        status, begun, token = 0, time.monotonic(), REQUEST_ID.set(number)

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = number
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            seconds = round(time.monotonic() - begun, 6)
            values = {"method": scope["method"], "path": scope["path"], "status": status, "seconds": seconds}
            _ACCESS.info("%s %s %d in %.3f s, %s", *values.values(), number, extra=values)
            REQUEST_ID.reset(token)


class Counted:
    """ASGI middleware: counts requests by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = frozenset(paths)
        self._patterns = [(compile_path(path)[0], path) for path in paths if "{" in path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = self._label(scope["path"])

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counting)

    def _label(self, path: str) -> str:
        """Return the path as the routes have it: there are few of those, and any number of others."""
        if path in self._paths:
            return path
        return next((label for pattern, label in self._patterns if pattern.match(path)), "other")
