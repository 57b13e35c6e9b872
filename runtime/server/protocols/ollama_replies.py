"""Answers as Ollama's protocol has them: one object, or lines of which the last one holds the counts."""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ..calls import Call
from ..errors import ApiError, ollama_shape
from ..framing import LINES
from ..messages import Finished, Piece, TokenText
from ..replies import ChatTexts, logprob_entries
from ..requests import ChatRequest

_NS = 1_000_000_000


class OllamaReply:
    """The answer to `POST /api/chat` or `POST /api/generate`; it counts its time from when it was made."""

    framing = LINES

    def __init__(self, request: ChatRequest, message: bool, model: str, most_calls: int) -> None:
        """Begin one.

        Args:
            request: what was asked for, as a chat.
            message: whether the text stands in a message, as in chats; else it is the value of `response`.
            model: what it is called.
            most_calls: tool calls of one answer at most.

        """
        self._texts = ChatTexts(request, most_calls)
        self._logprobs = request.logprobs
        self._message = message
        self._model = model
        self._began = time.monotonic_ns()
        self._finished: Finished | None = None

    def opening(self, prompt_tokens: int) -> list[dict[str, Any]]:
        """Return nothing: a stream begins with its text."""
        return []

    def piece(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the line of some more text; none while it may be a tool call."""
        text = self._texts.shown(piece)
        return [self._line(text, (), piece.logprobs)] if text or piece.logprobs else []

    def plain(self, choice: int, text: str) -> dict[str, Any] | None:
        """Return the line of a piece of text; None where it may be a tool call."""
        return self._line(text) if self._texts.plain else None

    def ending(self, finished: Finished) -> list[dict[str, Any]]:
        """Return the line of the rest of the text and the calls."""
        self._finished = finished
        text, calls = self._texts.rest(finished)
        return [self._line(text, calls, finished.logprobs)] if text or calls or finished.logprobs else []

    def closing(self, usage: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the last line, with why the answer ended and what it took."""
        assert self._finished
        return [self._line("") | self._end(self._finished)]

    def failed(self, error: ApiError) -> dict[str, Any]:
        """Return the line that ends a stream with an error."""
        return ollama_shape(error)

    def whole(self, answers: Sequence[Finished], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the answer in one object."""
        [finished] = answers
        text, calls = self._texts.rest(finished)
        return self._line(text, calls, finished.logprobs) | self._end(finished)

    def _line(self, text: str, calls: Sequence[Call] = (), logprobs: Sequence[TokenText] = ()) -> dict[str, Any]:
        content: dict[str, Any] = {"response": text}
        if self._message:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if calls:
                message["tool_calls"] = [_call(number, call) for number, call in enumerate(calls)]
            content = {"message": message}
        line = {"model": self._model, "created_at": now(), **content, "done": False}
        if self._logprobs and logprobs:
            line["logprobs"] = logprob_entries(logprobs)
        return line

    def _end(self, finished: Finished) -> dict[str, Any]:
        return {
            "done": True,
            "done_reason": finished.reason,
            "total_duration": time.monotonic_ns() - self._began,
            "load_duration": 0,  # it was loaded before
            "prompt_eval_count": finished.prompt_tokens,
            "prompt_eval_duration": round(finished.prefill_seconds * _NS),
            "eval_count": finished.completion_tokens,
            "eval_duration": round(finished.decode_seconds * _NS),
        }


def loaded(model: str, message: bool) -> dict[str, Any]:
    """Return the answer to a request that asks for nothing but that the model be loaded."""
    content = {"message": {"role": "assistant", "content": ""}} if message else {"response": ""}
    return {"model": model, "created_at": now(), **content, "done": True, "done_reason": "load"}


def now() -> str:
    """Return the time as the protocol has it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _call(number: int, call: Call) -> dict[str, Any]:
    return {
        "id": call.id,
        "function": {"index": number, "name": call.name, "arguments": json.loads(call.arguments)},
    }
