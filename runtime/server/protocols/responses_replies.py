"""Answers to `POST /v1/responses`: one object, or numbered events that build it up."""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..calls import Call
from ..errors import ApiError
from ..framing import NAMED_EVENTS
from ..messages import Finished, Piece, TokenText
from ..replies import ChatTexts, logprob_entries
from ..requests import ChatRequest
from .responses_requests import FunctionChoice, ResponseRequest


class ResponseReply:
    """A response of items: a message with the text, and a call each."""

    framing = NAMED_EVENTS

    def __init__(
        self,
        body: ResponseRequest,
        request: ChatRequest,
        keep: Callable[[dict[str, Any]], None],
        model: str,
        most_calls: int,
    ) -> None:
        """Begin one.

        Args:
            body: what was asked for.
            request: the same as a chat.
            keep: called with the response once it is complete.
            model: what it is called.
            most_calls: tool calls of one answer at most.

        """
        self._texts = ChatTexts(request, most_calls)
        self._logprobs = request.logprobs
        self._offered = {entry.name: entry for entry in body.offered}
        self._keep = keep
        self._head = _head(body, model)
        self._number = 0
        self._message_id = f"msg_{secrets.token_hex(12)}"
        self._open = False
        self._text = ""
        self._tokens: list[TokenText] = []
        self._output: list[dict[str, Any]] = []
        self._length = False

    def opening(self, prompt_tokens: int) -> list[dict[str, Any]]:
        """Return the events that say which response it is; its message begins where there can be nothing else."""
        begun = self._response("in_progress", [], None)
        events = [
            self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun),
        ]
        return [*events, *(self._begin_text() if self._texts.plain else [])]

    def piece(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the events of some more text; none while it may be a tool call."""
        return self._more(self._texts.shown(piece), piece.logprobs)

    def plain(self, choice: int, text: str) -> dict[str, Any] | None:
        """Return None: events are numbered."""
        return None

    def ending(self, finished: Finished) -> list[dict[str, Any]]:
        """Return the events of the rest of the text and of the calls."""
        text, calls = self._texts.rest(finished)
        self._length = finished.reason == "length"
        events = self._more(text, finished.logprobs)
        if not self._open and not calls:
            events += self._begin_text()
        if self._open:
            events += self._end_text()
        for call in calls:
            events += self._called(call)
        return events

    def closing(self, usage: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the event with the complete response."""
        response = self._ended(usage)
        return [self._event(f"response.{response['status']}", response=response)]

    def failed(self, error: ApiError) -> dict[str, Any]:
        """Return the event that ends a stream with an error."""
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        response = self._response("failed", self._output, None)
        return self._event("response.failed", response={**response, "error": {"code": code, "message": error.message}})

    def whole(self, answers: Sequence[Finished], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the response in one object."""
        [finished] = answers
        self.ending(finished)
        return self._ended(usage)

    def _ended(self, usage: dict[str, Any]) -> dict[str, Any]:
        response = self._response("incomplete" if self._length else "completed", self._output, _usage(usage))
        self._keep(response)
        return response

    def _response(self, status: str, output: Sequence[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {**self._head, "status": status, "incomplete_details": reason, "output": list(output), "usage": usage}

    def _event(self, kind: str, **values: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **values}

    def _more(self, text: str, tokens: Sequence[TokenText]) -> list[dict[str, Any]]:
        if not text and not (self._logprobs and tokens):
            return []
        self._text += text
        self._tokens += tokens
        begun = [] if self._open else self._begin_text()
        logprobs = logprob_entries(tokens) if self._logprobs else []
        return [*begun, self._at("response.output_text.delta", delta=text, logprobs=logprobs)]

    def _begin_text(self) -> list[dict[str, Any]]:
        self._open = True
        message = self._message("in_progress", [])
        return [
            self._event("response.output_item.added", output_index=0, item=message),
            self._at("response.content_part.added", part=_part("", [])),
        ]

    def _end_text(self) -> list[dict[str, Any]]:
        logprobs = logprob_entries(self._tokens) if self._logprobs else []
        part = _part(self._text, logprobs)
        message = self._message("incomplete" if self._length else "completed", [part])
        self._output.append(message)
        return [
            self._at("response.output_text.done", text=self._text, logprobs=logprobs),
            self._at("response.content_part.done", part=part),
            self._event("response.output_item.done", output_index=0, item=message),
        ]

    def _called(self, call: Call) -> list[dict[str, Any]]:
        index = len(self._output)
        offered = self._offered[call.name]
        name = offered.tool.name
        named = {"id": f"fc_{secrets.token_hex(12)}", "type": "function_call", "call_id": call.id, "name": name}
        if offered.namespace:
            named["namespace"] = offered.namespace
        item = {**named, "arguments": call.arguments, "status": "completed"}
        self._output.append(item)
        where = {"item_id": item["id"], "output_index": index}
        begun = {**item, "arguments": "", "status": "in_progress"}
        kind = "response.function_call_arguments"
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event(f"{kind}.delta", **where, delta=call.arguments),
            self._event(f"{kind}.done", **where, name=name, arguments=call.arguments),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _at(self, kind: str, **values: Any) -> dict[str, Any]:
        return self._event(kind, item_id=self._message_id, output_index=0, content_index=0, **values)


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _head(body: ResponseRequest, model: str) -> dict[str, Any]:
    """Return the fields that say what was asked for."""
    form = body.text.format.model_dump(by_alias=True, exclude_none=True)
    choice = body.tool_choice
    return {
        "id": f"resp_{secrets.token_hex(24)}",
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "background": False,
        "error": None,
        "instructions": body.instructions or None,
        "max_output_tokens": body.given().get("max_tokens"),
        "max_tool_calls": None,
        "metadata": body.metadata,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": body.store,
        "temperature": body.given().get("temperature"),
        "text": {"format": form},
        "tool_choice": choice.model_dump() if isinstance(choice, FunctionChoice) else choice,
        "tools": [tool.model_dump() for tool in body.tools],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.given().get("top_p"),
        "truncation": "disabled",
    }


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": usage["prompt_tokens_details"],
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
