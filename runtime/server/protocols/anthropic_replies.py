"""Answers as Anthropic's protocol has them: one object, or events that build the same object up."""

import json
import secrets
from collections.abc import Sequence
from typing import Any

from ..calls import Call
from ..errors import ApiError, anthropic_shape
from ..framing import PINGED_EVENTS
from ..messages import Finished, Piece
from ..replies import ChatTexts
from ..requests import ChatRequest


class MessageReply:
    """The answer to `POST /v1/messages`: a message of blocks, first its text and then its calls."""

    framing = PINGED_EVENTS

    def __init__(self, request: ChatRequest, model: str, most_calls: int) -> None:
        """Begin one.

        Args:
            request: what was asked for, as a chat.
            model: what it is called.
            most_calls: tool calls of one answer at most.

        """
        self._texts = ChatTexts(request, most_calls)
        self._head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}
        self._blocks = 0
        self._open = False
        self._end: dict[str, Any] = {}

    def opening(self, prompt_tokens: int) -> list[dict[str, Any]]:
        """Return the events that say whose message it is; its first block begins where it can be nothing but text."""
        counts = _usage(prompt_tokens, 0, 0)
        message = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": counts}
        return [{"type": "message_start", "message": message}, *(self._begin_text() if self._texts.plain else [])]

    def piece(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the events of some more text; none while it may be a tool call."""
        return self._more(self._texts.shown(piece))

    def plain(self, choice: int, text: str) -> dict[str, Any] | None:
        """Return the event of a piece of text; None where it may be a tool call."""
        return self._delta(text) if self._texts.plain else None

    def ending(self, finished: Finished) -> list[dict[str, Any]]:
        """Return the events of the rest of the text and of the calls."""
        text, calls = self._texts.rest(finished)
        events = self._more(text)
        if self._open:
            events.append({"type": "content_block_stop", "index": 0})
        for call in calls:
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": call.arguments}
            events += [
                {"type": "content_block_start", "index": self._blocks, "content_block": block},
                {"type": "content_block_delta", "index": self._blocks, "delta": delta},
                {"type": "content_block_stop", "index": self._blocks},
            ]
            self._blocks += 1
        self._end = _end(finished, calls)
        return events

    def closing(self, usage: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the events that say why it ended, and what it took."""
        return [{"type": "message_delta", "delta": self._end, "usage": _counts(usage)}, {"type": "message_stop"}]

    def failed(self, error: ApiError) -> dict[str, Any]:
        """Return the event that ends a stream with an error."""
        return anthropic_shape(error)

    def whole(self, answers: Sequence[Finished], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the message in one object."""
        [finished] = answers
        text, calls = self._texts.rest(finished)
        content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text or self._texts.plain else []
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
            for call in calls
        ]
        return {**self._head, "content": content, **_end(finished, calls), "usage": _counts(usage)}

    def _more(self, text: str) -> list[dict[str, Any]]:
        if not text:
            return []
        return [*([] if self._open else self._begin_text()), self._delta(text)]

    def _begin_text(self) -> list[dict[str, Any]]:
        self._open, self._blocks = True, 1
        return [{"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}]

    def _delta(self, text: str) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}


def _end(finished: Finished, calls: Sequence[Call]) -> dict[str, Any]:
    """Return why an answer ended; one that was cut says so, whatever complete calls it holds."""
    if finished.reason == "length":
        reason = "max_tokens"
    elif calls:
        reason = "tool_use"
    else:
        reason = "end_turn" if finished.stop is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": finished.stop if reason == "stop_sequence" else None}


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    return _usage(usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens"])


def _usage(prompt: int, cached: int, output: int) -> dict[str, Any]:
    """Return the count of tokens; those of the prompt that a cache held are counted apart."""
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": output,
    }
