"""How answers are put into bytes: JSON; the objects of a stream as server-sent events of two kinds, or as lines.

`pydantic_core` writes the same JSON as Python's `json`, in a quarter of the time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json


@dataclass(frozen=True)
class Framing:
    """The way of one protocol."""

    media_type: str
    frame: Callable[[dict[str, Any]], bytes]
    """Puts one object into bytes."""
    end: bytes = b""
    """What comes after the last object of a complete answer."""
    alive: bytes = b""
    """What is sent where nothing happens for long; nothing, where clients would not understand it."""


def whole(table: dict[str, Any]) -> bytes:
    """Return an answer that is not streamed."""
    return to_json(table, inf_nan_mode="null")


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % to_json(chunk)


def _named_event(chunk: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (chunk["type"].encode(), to_json(chunk))


def _line(chunk: dict[str, Any]) -> bytes:
    return to_json(chunk) + b"\n"


_EVENTS_TYPE = "text/event-stream"
_COMMENT = b": still at it\n\n"
EVENTS = Framing(_EVENTS_TYPE, _event, b"data: [DONE]\n\n", _COMMENT)
"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), of OpenAI's completions."""
NAMED_EVENTS = Framing(_EVENTS_TYPE, _named_event, alive=_COMMENT)
"""The same, each with its `type` as its name: OpenAI's responses."""
PINGED_EVENTS = Framing(_EVENTS_TYPE, _named_event, alive=_named_event({"type": "ping"}))
"""The same with an event of its own that means nothing: Anthropic's messages."""
LINES = Framing("application/x-ndjson", _line)
"""One object in each line: Ollama."""
