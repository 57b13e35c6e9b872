"""Connections: how many there may be, how long each may keep the server waiting, and how long a request's head is.

uvicorn bounds none of these: clients that connect and say nothing would use up the process's file descriptors, and a
head without an end its memory.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as _Base
else:
    _Base = object

_LOG = logging.getLogger(__name__)
_MOST_CONNECTIONS = 4096
_ENDING_SECONDS = 5.0
_ANSWERS = {
    408: (b"Request Timeout", b"the request was not complete in time"),
    413: (b"Content Too Large", b"the request is larger than this server takes"),
    431: (b"Request Header Fields Too Large", b"the request's head is too long"),
    503: (b"Service Unavailable", b"all connections are in use; try again later"),
}


@dataclass(frozen=True)
class Patience:
    """What clients may take: times in seconds, sizes in bytes."""

    connections: int = _MOST_CONNECTIONS
    """Beyond so many, the one that has kept the server waiting longest is closed for each new one."""
    request: float = 120.0
    """From the connection, or a later request's first byte, until the request is whole."""
    idle: float = 120.0
    """Between two requests; longer than common clients and balancers keep a connection, so that they close it."""
    reading: float = 120.0
    """How long what is sent may stay unread."""
    grace: float = 1.0
    """How much longer each of these lasts: a loop runs its timers before it reads, so what arrived while the process or
    the client stood still (a laptop that slept, a machine at its limit) is seen only after the timer."""
    head: int = 2**16
    """A request's line and headers."""
    whole: int = 2**25
    """All of a request, with what chunks add to a body."""


def protocol(patience: Patience, base: type[asyncio.Protocol] = AutoHTTPProtocol) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with bounds on what its clients may take.

    Args:
        patience: the bounds.
        base: `HttpToolsProtocol` or `H11Protocol` of uvicorn.

    """
    members: dict[str, Any] = {"patience": patience, "waiting": {}, "working": set()}
    return cast("type[asyncio.Protocol]", type("Connection", (_Connection, base), members))


def most_connections() -> int:
    """Return how many connections this process may have, after it has asked the system for enough."""
    try:
        import resource
    except ImportError:  # on Windows, sockets are none of the files that are counted
        return _MOST_CONNECTIONS
    wanted = 2 * _MOST_CONNECTIONS  # the other half is for all else that is a file
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _MOST_CONNECTIONS
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed // 2


class _Connection(_Base):
    """Closes itself where its client takes too long or too much, or where a newer one needs the room."""

    patience: Patience
    waiting: "dict[_Connection, None]"
    """Connections without a whole request, the one that has kept the server waiting longest first."""
    working: "set[_Connection]"
    """Connections whose request is being answered."""
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _bytes = 0
    _between = False
    """Whether an answer is through, and nothing of the next request has come."""
    _answered_early = False
    """Whether the last answer was given before its request was whole, so that the rest may follow."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self.waiting[self] = None
        self._set_deadline()
        if len(self.waiting) + len(self.working) > self.patience.connections:
            longest = next(iter(self.waiting))
            longest._end(503 if longest is self else None, "newer connections need the room")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()
        self._unread = _cancelled(self._unread)

    def data_received(self, data: bytes) -> None:
        if self._between:
            self._between, self._bytes = False, 0
            self._set_deadline()
        self._bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._awaits_request():
            self._deadline = _cancelled(self._deadline)
            self.waiting.pop(self, None)
            self.working.add(self)
        elif self._awaits_head() and not self._answered_early and self._bytes > self.patience.head:
            self._end(431, "its request's head is too long")
        elif self._bytes > self.patience.whole:
            self._end(413, "its request is too large")

    def on_response_complete(self) -> None:
        self.working.discard(self)
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later(self.patience.reading)
        elif self._awaits_request():
            self._answered_early = bool(self.cycle.more_body)
            self._between = True
            self._deadline = _cancelled(self._deadline)
            self.waiting.pop(self, None)
            self.waiting[self] = None
        else:
            self.working.add(self)  # the next request came with this one

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.patience.grace, self._end, None, "it was idle")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = _cancelled(self._unread)
        self._abort_later(self.patience.reading)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._unread = _cancelled(self._unread)

    def _awaits_request(self) -> bool:
        return self._awaits_head() or bool(self.cycle.more_body)

    def _awaits_head(self) -> bool:
        return not self.cycle or self.cycle.response_complete

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.patience.request, self._late)

    def _late(self) -> None:
        why = "its request was not complete in time"
        self._deadline = self.loop.call_later(self.patience.grace, self._end, 408 if self._bytes else None, why)

    def _abort_later(self, seconds: float) -> None:
        """Drop the connection where what was sent is still unread then."""
        if self._unread is None:
            self._unread = self.loop.call_later(seconds, self._not_read)

    def _not_read(self) -> None:
        self._unread = self.loop.call_later(self.patience.grace, self._drop)

    def _drop(self) -> None:
        _LOG.info("%s: closed, its client does not read", self.client)
        self.transport.abort()

    def _end(self, status: int | None, why: str) -> None:
        """Close the connection, with an answer where a status is given and none has begun."""
        self._forget()
        if self.transport.is_closing():
            return
        _LOG.info("%s: closed, %s", self.client, why)
        if status and not (self.cycle and self.cycle.response_started and not self.cycle.response_complete):
            self.transport.write(_answer(status))
        self.transport.close()
        self._unread = _cancelled(self._unread)
        self._abort_later(_ENDING_SECONDS)

    def _forget(self) -> None:
        self._deadline = _cancelled(self._deadline)
        self._unset_keepalive_if_required()
        self.waiting.pop(self, None)
        self.working.discard(self)


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _answer(status: int) -> bytes:
    reason, text = _ANSWERS[status]
    head = (
        b"HTTP/1.1 %d %s\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    )
    return head % (status, reason, len(text)) + text
