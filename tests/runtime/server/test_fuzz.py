"""Malformed requests, by the thousand: each is refused with an error of its own shape, none breaks the server.

CI sends some hundreds; `PHI3_ONNX_FUZZ=1000` before pytest sends a thousand of each kind.
"""

import json
import os
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import RunningServer

EXAMPLES = int(os.environ.get("PHI3_ONNX_FUZZ", "150"))
PATHS = ("/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate", "/v1/messages", "/v1/responses")

# Bounded, so that an accepted request is a short one.
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_function = st.fixed_dictionaries({}, optional={"name": st.just("f") | _json, "parameters": _json, "strict": _json})
_tool = st.fixed_dictionaries(
    {"type": st.just("function") | _json, "function": _function | _json}
) | st.fixed_dictionaries({"name": st.just("f") | _json, "input_schema": _json})
_format = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema"]) | _json},
    optional={"json_schema": st.fixed_dictionaries({"name": st.just("s"), "schema": _json}) | _json},
)
_text_part = st.fixed_dictionaries({"type": st.just("text"), "text": _json})
_block = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "tool_use", "tool_result", "thinking", "image"]) | _json},
    optional={
        "text": st.text(max_size=9) | _json,
        "id": st.just("c") | _json,
        "name": st.just("f") | _json,
        "input": st.dictionaries(st.text(max_size=3), _json, max_size=2) | _json,
        "tool_use_id": st.just("c") | _json,
        "content": st.text(max_size=9) | _json,
    },
)
_message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer"]) | _json},
    optional={
        "content": st.text(max_size=20)
        | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": _json}))
        | st.lists(_block, max_size=3)
        | _json,
        "tool_calls": st.lists(_json, max_size=2) | _json,
        "tool_call_id": st.just("c") | _json,
        "name": _json,
    },
)
_item = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning"]) | _json,
        "role": st.sampled_from(["user", "assistant", "developer"]) | _json,
        "content": st.text(max_size=9) | _json,
        "call_id": st.just("c") | _json,
        "name": st.just("f") | _json,
        "arguments": st.just("{}") | _json,
        "output": st.text(max_size=9) | _json,
    },
)
_optional: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2) | _json,
    "top_p": st.floats(0, 1) | _json,
    "top_k": st.integers(0, 50) | _json,
    "repetition_penalty": st.floats(0.1, 3) | _json,
    "seed": st.integers(-(2**63), 2**63) | _json,
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3) | _json,
    "n": st.integers(0, 3) | _json,
    "stream": st.booleans() | _json,
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}) | _json,
    "logprobs": st.booleans() | st.integers(0, 5) | _json,
    "top_logprobs": st.integers(0, 5) | _json,
    "tools": st.lists(_tool, max_size=2) | _json,
    "tool_choice": st.sampled_from(["auto", "none", "required"]) | _json,
    "response_format": _format | _json,
    "model": st.just("fake") | _json,
    "json_schema": _json,
    "regex": st.text(max_size=8) | _json,
    "grammar": st.sampled_from(["root ::= [a]", "start: /a/", 'root ::= "']) | _json,
    "guided_choice": st.lists(st.text(max_size=4), max_size=3) | _json,
    "structured_outputs": st.dictionaries(st.sampled_from(["json", "regex", "choice"]), _json, max_size=2) | _json,
    "logit_bias": _json,
    "echo": _json,
    "options": st.fixed_dictionaries(
        {"num_predict": st.integers(1, 3) | _json}, optional={"stop": _json, "seed": _json}
    )
    | _json,
    "format": st.just("json") | _json,
    "input": st.text(max_size=9) | st.lists(_item, max_size=3) | _json,
    "instructions": st.text(max_size=9) | _json,
    "text": st.fixed_dictionaries({"format": _format | _json}) | _json,
    "previous_response_id": _json,
    "stop_sequences": st.lists(st.text(max_size=3), max_size=3) | _json,
    "system": st.text(max_size=9) | _json,
    "raw": st.booleans() | _json,
}
_body = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 3)},
    optional={
        **_optional,
        "messages": st.lists(_message, min_size=1, max_size=3) | _json,
        "prompt": st.text(max_size=20) | st.lists(st.integers(-1, 300), max_size=4) | _json,
    },
)
_fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def check(reply: httpx.Response) -> None:
    assert reply.status_code in (200, 400, 404), (reply.status_code, reply.text)
    path = reply.request.url.path
    if path.startswith("/api/"):
        answer = [json.loads(line) for line in reply.text.splitlines()]
        assert all("error" not in line for line in answer[:-1])
        assert answer[-1].get("done") if reply.status_code == 200 else answer[-1]["error"]
    elif path == "/v1/responses" and reply.headers["content-type"].startswith("text/event-stream"):
        events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["type"] in ("response.completed", "response.incomplete")
    elif path == "/v1/messages":
        stream = reply.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]
        answer = events if stream else [reply.json()]
        assert all(part["type"] != "error" for part in answer[:-1])
        ends = {"message_stop"} if stream else {"message"}
        assert answer[-1]["type"] in (ends if reply.status_code == 200 else {"error"})
    elif reply.headers["content-type"].startswith("text/event-stream"):
        events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]" and all("error" not in json.loads(event) for event in events[:-1])
    elif reply.status_code != 200:
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]


@given(data=st.data())
@_fuzzed
def test_no_request_of_the_right_shape_breaks_the_server(server: RunningServer, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(PATHS))
    body = data.draw(_body)
    with server.http(headers={"Content-Type": "application/json"}) as http:
        check(http.post(path, content=json.dumps(body).encode("utf-8", "surrogatepass")))


@given(path=st.sampled_from(PATHS), body=st.binary(max_size=60) | _json.map(lambda value: json.dumps(value).encode()))
@_fuzzed
def test_no_bytes_break_the_server(server: RunningServer, path: str, body: bytes) -> None:
    with server.http(headers={"Content-Type": "application/json"}) as http:
        reply = http.post(path, content=body)
        assert reply.status_code == 400
        check(reply)


def test_the_server_still_answers(server: RunningServer) -> None:
    assert server.engine.restarts == 0
    answer = server.client().completions.create(model="fake", prompt="x")
    assert answer.choices[0].text == "yz"
