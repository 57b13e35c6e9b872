"""Answers as streams, piece by piece, in the framing of their protocol."""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .answers import Answers
from .errors import api_error
from .gone import hung_up
from .messages import Accepted, Event, Finished, Piece, Refused
from .replies import Reply, usage

# Proxies cut connections that are silent for a minute, and a long prompt takes longer than that on a CPU.
_KEEP_ALIVE_SECONDS = 15.0
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_TEXT = secrets.token_hex(16)
"""Stands for a text that is not known yet, and is in nothing else."""


class Events:
    """A request's answers as framed chunks; an error that comes late is one, too."""

    def __init__(
        self,
        answers: Answers,
        accepted: Accepted,
        reply: Reply,
        done: Callable[[Answers, list[Finished]], None],
        prompts: int,
    ) -> None:
        """Begin.

        Args:
            answers: the job.
            accepted: its first event.
            reply: makes the chunks.
            done: called when all answers are complete.
            prompts: how many prompts there are.

        """
        self.answers = answers
        self.framing = reply.framing
        self._accepted = accepted
        self._reply = reply
        self._done = done
        self._prompts = prompts
        self._finished: list[Finished] = []
        self._around: dict[int, tuple[bytes, bytes] | None] = {}
        self.over = False
        """Whether nothing comes any more."""

    def opening(self) -> bytes:
        """Return what comes before any text."""
        return self._framed(self._reply.opening(self._accepted.prompt_tokens))

    def more(self) -> bytes:
        """Return what came since the last call; empty where nothing can be shown yet."""
        return b"".join([self._event(event) for event in self.answers.take()])

    def _event(self, event: Event) -> bytes:
        if isinstance(event, Piece):
            return self._piece(event)
        if isinstance(event, Refused):
            self.over = True
            return self._framed([self._reply.failed(api_error(event))])
        self._finished.append(event)
        chunks = self._reply.ending(event)
        if not event.last:
            return self._framed(chunks)
        self.over = True
        self._done(self.answers, self._finished)
        counts = usage(self._accepted.prompt_tokens, self._finished, self._prompts)
        return self._framed([*chunks, *self._reply.closing(counts)]) + self.framing.end

    def _piece(self, piece: Piece) -> bytes:
        # Nearly all of a stream are pieces that differ in their text alone: the rest of their JSON is made once.
        if piece.choice not in self._around:
            self._around[piece.choice] = self._frame_around(piece.choice)
        around = self._around[piece.choice]
        if around is None or piece.logprobs:
            return self._framed(self._reply.piece(piece))
        return b"%b%b%b" % (around[0], to_json(piece.text), around[1])

    def _frame_around(self, choice: int) -> tuple[bytes, bytes] | None:
        chunk = self._reply.plain(choice, _TEXT)
        if chunk is None:
            return None
        before, _, after = self.framing.frame(chunk).partition(b'"%b"' % _TEXT.encode())
        return before, after

    def _framed(self, chunks: list[dict[str, Any]]) -> bytes:
        return b"".join([self.framing.frame(chunk) for chunk in chunks])


class EventStream(Response):
    """A response of events, which says when nobody reads it any more.

    What the engine said is sent by whoever brings it. Waking a task for each token takes longer than all else that
    this process does for it, on cores that the engine needs; so the task waits for the end, and for slow readers.
    """

    def __init__(self, events: Events, on_end: Callable[[], None]) -> None:
        """Make one.

        Args:
            events: the events.
            on_end: called when the response is over, complete or not.

        """
        super().__init__(headers=_HEADERS, media_type=events.framing.media_type)
        del self.headers["content-length"]
        self._events = events
        self._on_end = on_end
        self._send: Any = None
        self._rest: _Rest | None = None
        self._failure: BaseException | None = None
        self._wake = asyncio.Event()
        self._sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client hangs up."""
        self._send = send
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            gone = asyncio.ensure_future(hung_up(receive))
            gone.add_done_callback(lambda _: self._wake.set())
            try:
                if opening := self._events.opening():
                    await send(_body(opening))
                await self._until_over(gone)
            finally:
                gone.cancel()
            if not gone.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._events.answers.listener = None
            self._on_end()

    async def _until_over(self, gone: "asyncio.Future[None]") -> None:
        self._events.answers.listener = self._pass_on
        self._pass_on()
        while not gone.done():
            if self._failure:
                raise self._failure
            if self._rest:
                await self._rest
                self._rest = None
                self._pass_on()
            elif self._events.over:
                return
            else:
                await self._wait()

    async def _wait(self) -> None:
        self._wake.clear()
        sent = self._sent
        try:
            async with asyncio.timeout(_KEEP_ALIVE_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            if sent == self._sent and (alive := self._events.framing.alive):
                await self._send(_body(alive))

    def _pass_on(self) -> None:
        """Send what there is, now; wake the task where that is not all."""
        if self._rest or self._failure:
            return
        try:
            if body := self._events.more():
                self._sent += 1
                self._rest = _begin(self._send(_body(body)))
        except Exception as error:  # not for whoever brought the event
            self._failure = error
        if self._rest or self._failure or self._events.over:
            self._wake.set()


class _Rest:
    """What is left of a coroutine that has to wait: awaiting it continues it."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        """Hand on what it waits for, until it is through."""
        try:
            while True:
                yield self._waits_for
                self._waits_for = self._coroutine.send(None)
        except StopIteration:
            return
        finally:
            self._coroutine.close()


def _begin(coroutine: Coroutine[Any, Any, None]) -> _Rest | None:
    """Run a coroutine without a task until it has to wait, and return what is left of it."""
    try:
        return _Rest(coroutine, coroutine.send(None))
    except StopIteration:
        return None


def _body(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}
