"""Streamed and whole replies of the further protocols say the same, however the text is cut and whatever it holds."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phi3_onnx.runtime.decoding.response import FinishReason
from phi3_onnx.runtime.server.messages import Finished, Piece
from phi3_onnx.runtime.server.protocols.anthropic_replies import MessageReply
from phi3_onnx.runtime.server.protocols.ollama_replies import OllamaReply
from phi3_onnx.runtime.server.protocols.responses_replies import ResponseReply
from phi3_onnx.runtime.server.protocols.responses_requests import ResponseRequest
from phi3_onnx.runtime.server.replies import usage
from phi3_onnx.runtime.server.requests import ChatRequest

CALL = '<tool_call>{"name": "now", "arguments": {"a": "</tool_call>"}}</tool_call>'
_PARTS = st.sampled_from([CALL, '{"tool_calls": [', '{"name": "now"}', "]}", "<tool_call>", "functools"]) | st.text(
    '<tool_cal>|/{}[]"name: ,\n', max_size=8
)
TOOLS = [{"type": "function", "function": {"name": "now"}}]
DIFFERS = {"id", "call_id", "created_at", "total_duration"}


def built_of_lines(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return what the lines of an Ollama chat build up."""
    *before, last = lines
    texts = [line["message"]["content"] for line in (*before, last)]
    calls = [call for line in before for call in line["message"].get("tool_calls", [])]
    message = {"role": "assistant", "content": "".join(texts), **({"tool_calls": calls} if calls else {})}
    return {**last, "message": message}


def built_of_events(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that events of Anthropic's protocol build up; they must come in the order it has."""
    message: dict[str, Any] = {}
    texts: list[str] = []
    for event in events:
        kind = event.pop("type")
        if kind == "message_start":
            message = event["message"]
        elif kind == "content_block_start":
            assert event["index"] == len(message["content"]) == len(texts)
            message["content"].append(dict(event["content_block"]))
            texts.append("")
        elif kind == "content_block_delta":
            assert event["index"] == len(texts) - 1
            texts[-1] += event["delta"].get("text", "") + event["delta"].get("partial_json", "")
        elif kind == "content_block_stop":
            block, text = message["content"][event["index"]], texts[event["index"]]
            block |= {"text": text} if block["type"] == "text" else {"input": json.loads(text)}
        elif kind == "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]
        else:
            assert kind == "message_stop"
    return message


def built_of_numbered_events(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the response that the events of `/v1/responses` build up, which the last one holds whole."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    items: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            items.append(json.loads(json.dumps(event["item"])))
        elif kind == "content_part.added":
            items[event["output_index"]]["content"].append(dict(event["part"]))
        elif kind == "output_text.delta":
            part = items[event["output_index"]]["content"][event["content_index"]]
            part["text"] += event["delta"]
            part["logprobs"] += event["logprobs"]
        elif kind == "function_call_arguments.delta":
            items[event["output_index"]]["arguments"] += event["delta"]
        elif kind == "output_item.done":
            built = items[event["output_index"]]
            assert {**built, "status": event["item"]["status"]} == event["item"]
            items[event["output_index"]] = event["item"]
    response = events[-1]["response"]
    assert events[-1]["type"] == f"response.{response['status']}" and response["output"] == items
    return response


def without(table: Any, names: set[str]) -> Any:
    """Return a table without what differs from one answer to the next."""
    if isinstance(table, list):
        return [without(entry, names) for entry in table]
    if not isinstance(table, dict):
        return table
    return {name: without(value, names) for name, value in table.items() if name not in names}


def response_reply(request: ChatRequest, model: str, most_calls: int) -> ResponseReply:
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]  # this protocol's form of the same
    body = ResponseRequest.model_validate({"input": "go", "tools": tools})
    return ResponseReply(body, request, lambda response: None, model, most_calls)


@pytest.mark.parametrize(
    ("reply", "built"),
    [
        (partial(OllamaReply, message=True), built_of_lines),
        (MessageReply, built_of_events),
        (response_reply, built_of_numbered_events),
    ],
    ids=["ollama", "anthropic", "responses"],
)
@given(parts=st.lists(_PARTS, max_size=6), tools=st.booleans(), data=st.data())
def test_streamed_and_whole_replies_are_equal(
    reply: Callable[..., Any], built: Callable[..., Any], parts: list[str], tools: bool, data: st.DataObject
) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=5)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    reasons: list[FinishReason] = ["stop", "length"]
    reason = data.draw(st.sampled_from(reasons))
    stop = data.draw(st.sampled_from([None, "END"])) if reason == "stop" else None
    asked = {"messages": [{"role": "user", "content": "go"}], "tools": TOOLS if tools else []}
    request = ChatRequest.model_validate(asked)

    def finished(text: str) -> Finished:
        return Finished(1, 0, text, (), reason, 7, 5, 2, 0.5, 0.25, last=True, stop=stop)

    counts = usage(7, [finished("")], 1)
    whole = reply(request, model="m", most_calls=8).whole([finished(text)], counts)
    stream = reply(request, model="m", most_calls=8)
    chunks = stream.opening(7)
    for piece in pieces[:-1]:
        # As `streaming.Events` does it: the short way where there is one.
        plain = stream.plain(0, piece)
        chunks += [plain] if plain else stream.piece(Piece(1, 0, piece, ()))
    chunks += [*stream.ending(finished(pieces[-1])), *stream.closing(counts)]
    assert without(built(chunks), DIFFERS) == without(whole, DIFFERS)
