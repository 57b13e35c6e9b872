"""What clients get: the JSON of answers, whole or in pieces, of chats and of plain completions."""

import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

from .calls import Call, CallFilter
from .errors import ApiError, openai_shape
from .framing import EVENTS, Framing
from .messages import Finished, Piece, TokenText
from .requests import ChatRequest, CompletionRequest
from .texts import text_bytes


class Reply(Protocol):
    """The JSON of one request's answers; made anew for each request."""

    framing: Framing

    def opening(self, prompt_tokens: int) -> list[dict[str, Any]]:
        """Return the chunks that a stream begins with."""
        ...

    def piece(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the chunks of some more text."""
        ...

    def plain(self, choice: int, text: str) -> dict[str, Any] | None:
        """Return the chunk of a piece that is nothing but text; None where chunks differ in more than their text."""
        ...

    def ending(self, finished: Finished) -> list[dict[str, Any]]:
        """Return the chunks that end one answer of a stream."""
        ...

    def closing(self, usage: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the chunks that end a stream."""
        ...

    def failed(self, error: ApiError) -> dict[str, Any]:
        """Return the chunk that ends a stream with an error."""
        ...

    def whole(self, answers: Sequence[Finished], usage: dict[str, Any]) -> dict[str, Any]:
        """Return all answers in one object."""
        ...


def usage(prompt_tokens: int, answers: Sequence[Finished], prompts: int) -> dict[str, Any]:
    """Return the count of tokens of a request.

    Args:
        prompt_tokens: of all prompts together.
        answers: all answers.
        prompts: how many prompts there were.

    """
    completion = sum(answer.completion_tokens for answer in answers)
    # Each prompt counts once, and so do its cached tokens: those of its first choice, which ran it.
    choices = max(1, len(answers) // prompts)
    cached = sum(answer.cached_tokens for answer in answers if answer.choice % choices == 0)
    accepted = sum(answer.accepted_tokens for answer in answers)
    rejected = sum(answer.drafted_tokens for answer in answers) - accepted
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        # OpenAI's names for what ran ahead. Tokens that did not come true are not among the completion's.
        "completion_tokens_details": {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": rejected},
    }


class ChatTexts:
    """What the answers to a chat hold: text as it can be shown, and tool calls at the end."""

    def __init__(self, request: ChatRequest, most_calls: int) -> None:
        """Begin.

        Args:
            request: what was asked for.
            most_calls: tool calls of one answer at most.

        """
        names = frozenset(tool.function.name for tool in request.tools)
        self._filters = [CallFilter(names, most_calls) for _ in range(request.n)] if request.calls_tools else []

    @property
    def plain(self) -> bool:
        """Whether all text can be shown as it comes."""
        return not self._filters

    def shown(self, piece: Piece) -> str:
        """Return what can be shown after some more text; nothing while it may be a tool call."""
        return self._filters[piece.choice].push(piece.text) if self._filters else piece.text

    def rest(self, finished: Finished) -> tuple[str, list[Call]]:
        """Return what is left to show of an answer, and its calls."""
        if not self._filters:
            return finished.text, []
        filter_ = self._filters[finished.choice]
        shown = filter_.push(finished.text)
        rest, calls = filter_.finish()
        return shown + rest, calls


class _Reply:
    """What both kinds of reply share: the fields around the choices, and the usage."""

    framing = EVENTS
    kind = ""
    chunk_kind = ""
    prefix = ""

    def __init__(self, model: str, include_usage: bool, continuous_usage: bool = False) -> None:
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._include_usage = include_usage
        self._continuous = continuous_usage
        self._prompt_tokens = 0
        self._counts: dict[int, int] = {}  # tokens of each choice so far

    def opening(self, prompt_tokens: int) -> list[dict[str, Any]]:
        self._prompt_tokens = prompt_tokens
        return []

    def failed(self, error: ApiError) -> dict[str, Any]:
        return openai_shape(error)

    def closing(self, usage: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**self._head, "object": self.chunk_kind, "choices": [], "usage": usage}] if self._include_usage else []

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._head, "object": self.chunk_kind, "choices": [choice]}
        if self._continuous:
            return {**chunk, "usage": self._usage_so_far()}
        return {**chunk, "usage": None} if self._include_usage else chunk

    def _usage_so_far(self) -> dict[str, int]:
        completion = sum(self._counts.values())
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self._prompt_tokens + completion,
        }

    def _object(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "object": self.kind, "choices": choices, "usage": usage}


class ChatReply(_Reply):
    """The answers to `POST /v1/chat/completions`."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, request: ChatRequest, model: str, most_calls: int) -> None:
        """Begin one.

        Args:
            request: what was asked for.
            model: what it is called.
            most_calls: tool calls of one answer at most.

        """
        super().__init__(model, request.include_usage, request.continuous_usage)
        self._request = request
        self._texts = ChatTexts(request, most_calls)

    def opening(self, prompt_tokens: int) -> list[dict[str, Any]]:
        """Return the chunks that say who speaks."""
        super().opening(prompt_tokens)
        return [self._delta(number, {"role": "assistant", "content": ""}) for number in range(self._request.n)]

    def piece(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the chunks of some more text; none while it may be a tool call."""
        self._counts[piece.choice] = piece.tokens
        text = self._texts.shown(piece)
        if not text and not piece.logprobs:
            return []
        return [self._delta(piece.choice, {"content": text}, piece.logprobs)]

    def plain(self, choice: int, text: str) -> dict[str, Any] | None:
        """Return the chunk of a piece of text; None where it may be a tool call."""
        return self._delta(choice, {"content": text}) if self._texts.plain and not self._continuous else None

    def ending(self, finished: Finished) -> list[dict[str, Any]]:
        """Return the rest of one answer, or its tool calls, and why it ended."""
        self._counts[finished.choice] = finished.completion_tokens
        shown, calls = self._texts.rest(finished)
        chunks: list[dict[str, Any]] = []
        if shown or finished.logprobs:
            chunks.append(self._delta(finished.choice, {"content": shown}, finished.logprobs))
        if calls:
            deltas = [{"index": number, **call.as_json()} for number, call in enumerate(calls)]
            chunks.append(self._delta(finished.choice, {"tool_calls": deltas}))
        return [*chunks, self._delta(finished.choice, {}, reason=_reason(finished, calls))]

    def whole(self, answers: Sequence[Finished], usage: dict[str, Any]) -> dict[str, Any]:
        """Return all answers in one object."""
        return self._object([self._choice(answer) for answer in answers], usage)

    def _choice(self, finished: Finished) -> dict[str, Any]:
        text, calls = self._texts.rest(finished)
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = [call.as_json() for call in calls]
        return {
            "index": finished.choice,
            "message": message,
            "logprobs": self._logprobs(finished.logprobs),
            "finish_reason": _reason(finished, calls),
        }

    def _delta(
        self,
        choice: int,
        delta: dict[str, Any],
        logprobs: Sequence[TokenText] = (),
        reason: str | None = None,
    ) -> dict[str, Any]:
        return self._chunk(
            {
                "index": choice,
                "delta": delta,
                "logprobs": self._logprobs(logprobs) if logprobs else None,
                "finish_reason": reason,
            }
        )

    def _logprobs(self, tokens: Sequence[TokenText]) -> dict[str, Any] | None:
        if not self._request.logprobs:
            return None
        return {"content": logprob_entries(tokens), "refusal": None}


class CompletionReply(_Reply):
    """The answers to `POST /v1/completions`."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, request: CompletionRequest, model: str) -> None:
        """Begin one."""
        super().__init__(model, request.include_usage, request.continuous_usage)
        self._request = request
        self._offsets = [0] * (len(request.prompts) * request.n)

    def piece(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the chunk of some more text."""
        self._counts[piece.choice] = piece.tokens
        return [self._chunk(self._choice(piece.choice, piece.text, piece.logprobs, None))]

    def plain(self, choice: int, text: str) -> dict[str, Any] | None:
        """Return the chunk of a piece of text."""
        if self._continuous:
            return None
        return self._chunk(self._choice(choice, text, (), None))

    def ending(self, finished: Finished) -> list[dict[str, Any]]:
        """Return the chunk with the rest of one answer, and why it ended."""
        self._counts[finished.choice] = finished.completion_tokens
        return [self._chunk(self._choice(finished.choice, finished.text, finished.logprobs, _reason(finished, [])))]

    def whole(self, answers: Sequence[Finished], usage: dict[str, Any]) -> dict[str, Any]:
        """Return all answers in one object."""
        choices = [self._choice(entry.choice, entry.text, entry.logprobs, _reason(entry, [])) for entry in answers]
        return self._object(choices, usage)

    def _choice(self, number: int, text: str, tokens: Sequence[TokenText], reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self._request.logprobs is not None:
            logprobs = {
                "tokens": [entry.text for entry in tokens],
                "token_logprobs": [entry.logprob for entry in tokens],
                "top_logprobs": [None if entry.logprob is None else dict(entry.top) for entry in tokens],
                "text_offset": [self._offset(number, entry.text) for entry in tokens],
            }
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _offset(self, number: int, text: str) -> int:
        before = self._offsets[number]
        self._offsets[number] += len(text)
        return before


def _reason(finished: Finished, calls: Sequence[Call]) -> str:
    # An answer that was cut says so, whatever complete calls it holds.
    return "tool_calls" if calls and finished.reason == "stop" else finished.reason


def logprob_entries(tokens: Sequence[TokenText]) -> list[dict[str, Any]]:
    """Return the log probabilities of tokens as OpenAI has them for chats, and others after it."""
    return [
        {**_token(entry.text, entry.logprob), "top_logprobs": [_token(text, value) for text, value in entry.top]}
        for entry in tokens
    ]


def _token(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": text_bytes(text)}
