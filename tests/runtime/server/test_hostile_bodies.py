"""Bodies that are small as bytes and huge as anything else."""

import json
from typing import Any

import pytest
from phi3_onnx.runtime.server.bodies import MOST_PARTS, check_parts
from phi3_onnx.runtime.server.errors import ApiError
from phi3_onnx.runtime.server.protocols.anthropic_requests import MessagesRequest
from phi3_onnx.runtime.server.protocols.ollama_requests import OllamaChat
from phi3_onnx.runtime.server.protocols.responses_requests import ResponseRequest
from phi3_onnx.runtime.server.requests import (
    MOST_CALLS,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Part,
)
from pydantic import ValidationError

from .conftest import RunningServer

MANY = 5000
ASKS = [{"role": "user", "content": "a"}]
BLOCKS = [{"role": "user", "content": [{}] * MANY}]
CALLS = [*ASKS, {"role": "assistant", "tool_calls": [{}] * MOST_CALLS}]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (CompletionRequest, {"prompt": [1] * MANY + ["a"]}),
        (CompletionRequest, {"prompt": [{}] * MANY}),
        (CompletionRequest, {"prompt": [["a"] * MANY]}),
        (CompletionRequest, {"prompt": "a", "stop": [1] * MANY}),
        (CompletionRequest, {"prompt": "a", "logit_bias": {f"x{number}": 1 for number in range(MANY)}}),
        (DetokenizeRequest, {"tokens": ["a"] * MANY}),
        (ChatRequest, {"messages": BLOCKS}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * MANY}]}),
        (ChatRequest, {"messages": CALLS}),
        (ChatRequest, {"messages": ASKS, "guided_choice": [1] * MANY}),
        (ResponseRequest, {"input": [{}] * MANY}),
        (ResponseRequest, {"input": "a", "metadata": {str(number): number for number in range(MANY)}}),
        (MessagesRequest, {"model": "a", "max_tokens": 1, "messages": BLOCKS}),
        (OllamaChat, {"model": "a", "messages": CALLS}),
    ],
)
def test_a_list_ends_at_its_first_wrong_entry(kind: type[Part], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(values)
    assert caught.value.error_count() < 10  # one for each alternative, where there are several


@pytest.mark.parametrize("entry", ["{}", "[]", '{"a":1}', '"{", [[":"]]'])
def test_a_body_of_too_many_parts_is_refused_before_it_is_parsed(server: RunningServer, entry: str) -> None:
    body = f'{{"messages": [{{"role": "user", "content": "a"}}], "metadata": [{", ".join([entry] * MOST_PARTS)}]}}'
    with server.http() as http:
        reply = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    assert f"{MOST_PARTS:,}" in reply.json()["error"]["message"]


@pytest.mark.parametrize("text", ["{[:", '"{[:\\', '\\"{[:', "\\\\{", '{"a": [1]}'])
def test_what_stands_in_texts_is_not_counted(text: str) -> None:
    check_parts(json.dumps({"prompt": text * MOST_PARTS}).encode())
    with pytest.raises(ApiError, match="objects"):
        check_parts(json.dumps({"prompt": text, "more": [{}] * MOST_PARTS}).encode())


def test_a_text_without_an_end_is_no_trap() -> None:
    check_parts(b'{"a": "' + b'{\\"' * MOST_PARTS)


def test_as_many_messages_as_a_chat_may_hold_are_not_too_many_parts() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [*ASKS, {"role": "assistant", "content": "", "tool_calls": [call]}] * 2048
    check_parts(json.dumps({"messages": messages}).encode())


def test_a_message_has_so_many_calls_at_most(server: RunningServer) -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    body = {"model": "fake", "messages": [{"role": "assistant", "tool_calls": [call] * (MOST_CALLS + 1)}]}
    with server.http() as http:
        reply = http.post("/api/chat", json=body)
    assert reply.status_code == 400 and str(MOST_CALLS) in reply.json()["error"]


def test_token_ids_may_fill_all_prompts() -> None:
    request = CompletionRequest.model_validate({"prompt": [[5] * 4096] * 64})
    assert [len(prompt) for prompt in request.prompts] == [4096] * 64
