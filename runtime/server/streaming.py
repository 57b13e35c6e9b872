"""Answers as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic_core import to_json
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .errors import ApiError, unavailable
from .messages import Accepted, Finished, Refused
from .process import Answers
from .replies import Reply, usage

# Proxies cut connections that are silent for a minute, and a long prompt takes longer than that on a CPU.
_KEEP_ALIVE_SECONDS = 15.0
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """A response of events, which says when nobody reads it any more."""

    def __init__(self, content: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        """Make one.

        Args:
            content: the events.
            on_end: called when the response is over, complete or not.

        """
        super().__init__(content, headers=_HEADERS, media_type="text/event-stream")
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client hangs up."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def events(
    answers: Answers,
    accepted: Accepted,
    reply: Reply,
    done: Callable[[Answers, list[Finished]], None],
    prompts: int,
) -> AsyncIterator[bytes]:
    """Yield a request's answers as events, each with the JSON of a chunk; an error that comes late is one, too.

    Args:
        answers: the job.
        accepted: its first event.
        reply: makes the chunks.
        done: called when all answers are complete.
        prompts: how many prompts there are.

    """
    if opening := reply.opening():
        yield _events(opening)
    finished: list[Finished] = []
    while not (finished and finished[-1].last):
        chunks: list[dict[str, Any]] = []
        waiting = await answers.next(_KEEP_ALIVE_SECONDS)
        for event in waiting:
            if isinstance(event, Refused):
                yield _events([*chunks, _error(event).body])
                return
            if isinstance(event, Finished):
                finished.append(event)
                chunks += reply.ending(event)
            else:
                chunks += reply.piece(event)
        if chunks:
            yield _events(chunks)
        elif not waiting:
            yield b": still at it\n\n"
    done(answers, finished)
    yield _events(reply.closing(usage(accepted.prompt_tokens, finished, prompts))) + b"data: [DONE]\n\n"


def _error(refused: Refused) -> ApiError:
    if refused.kind == "stopped":
        return unavailable(refused.message)
    return ApiError(500 if refused.kind == "engine" else 400, refused.message)


def _events(chunks: list[dict[str, Any]]) -> bytes:
    return b"".join([b"data: %b\n\n" % to_json(chunk) for chunk in chunks])
