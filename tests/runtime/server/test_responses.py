"""OpenAI's responses, as the official client has them, from an engine whose answers are known to the letter."""

import json
import tracemalloc
from typing import Any

import httpx
import openai
import pytest
from phi3_onnx.runtime.server.parameters import WARNING_HEADER
from phi3_onnx.runtime.server.protocols.responses_store import ResponseStore, Stored

from .conftest import RunningServer, StartServer
from .test_streams import built_of_numbered_events, without

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
AGENTS: Any = {"type": "namespace", "name": "agents", "description": "Helpers", "tools": [{**WEATHER, "name": "ask"}]}
CALL = '{"tool_calls": [{"name": "weather", "arguments": {"city": "Paris"}}]}'
LOGPROBS = ["message.output_text.logprobs"]


def post(server: RunningServer, body: dict[str, Any], path: str = "/v1/responses") -> httpx.Response:
    with server.http() as http:
        return http.post(path, json={"model": "fake", **body})


def test_a_response(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="fake", input="say Grüße, 🌍!", instructions="Be kind.", metadata={"a": "b"}
    )
    assert (response.output_text, response.status, response.model) == ("Grüße, 🌍!", "completed", "fake")
    assert response.instructions == "Be kind." and response.metadata == {"a": "b"} and response.error is None
    assert response.usage and response.usage.output_tokens == len("Grüße, 🌍!".encode()) + 1
    counted = client.responses.input_tokens.count(model="fake", input="say Grüße, 🌍!", instructions="Be kind.")
    assert counted.input_tokens == response.usage.input_tokens


@pytest.mark.parametrize(
    "body",
    [
        {"input": "say Grüße, 🌍!"},
        {"input": "say "},
        {"input": "say abcdef", "max_output_tokens": 3},
        {"input": "say hi", "include": LOGPROBS, "top_logprobs": 2},
        {"input": f"say {CALL}", "tools": [WEATHER]},
        {"input": "say no call", "tools": [WEATHER], "tool_choice": "auto"},
    ],
)
def test_events_build_up_the_response(server: RunningServer, body: dict[str, Any]) -> None:
    streamed = post(server, {**body, "stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in streamed.text.strip().split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name for name, _ in blocks] == [f"event: {event['type']}" for event in events]
    whole = post(server, body).json()
    # How much of the prompt is in a cache is not the same the second time.
    differs = {"id", "call_id", "created_at", "cached_tokens"}
    assert without(built_of_numbered_events(events), differs) == without(whole, differs)


def test_the_client_reads_the_events(client: openai.OpenAI) -> None:
    with client.responses.stream(model="fake", input=f"say {CALL}", tools=[WEATHER]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    [call] = final.output
    assert call.type == "function_call" and (call.name, call.arguments) == ("weather", '{"city": "Paris"}')
    deltas = [
        event.delta
        for event in client.responses.create(model="fake", input="say abc", stream=True)
        if event.type == "response.output_text.delta"
    ]
    assert "".join(deltas) == "abc"


def test_an_answer_that_was_cut_is_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(model="fake", input="say abcdef", max_output_tokens=3)
    assert (response.output_text, response.status) == ("abc", "incomplete")
    assert response.incomplete_details and response.incomplete_details.reason == "max_output_tokens"


def test_goes_on_from_a_response(client: openai.OpenAI) -> None:
    first = client.responses.create(model="fake", input="x", instructions="Be kind.", tools=[WEATHER])
    again = client.responses.retrieve(first.id)
    assert again.output_text == first.output_text == "You said: x"
    second = client.responses.create(model="fake", input="say a", previous_response_id=first.id)
    assert second.output_text == "a" and second.previous_response_id == first.id
    # The prompt is that of the whole conversation, without the instructions.
    told: Any = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "You said: x"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "say a"}]},
    ]
    assert second.usage and second.usage.input_tokens == client.responses.input_tokens.count(input=told).input_tokens
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="no response"):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="to go on from") as refused:
        client.responses.create(model="fake", input="a", previous_response_id=first.id)
    assert refused.value.code == "previous_response_not_found"
    third = client.responses.create(model="fake", input="say b", previous_response_id=second.id)
    assert third.output_text == "b"


def test_what_is_not_to_be_stored_is_not(client: openai.OpenAI) -> None:
    response = client.responses.create(model="fake", input="x", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    *_, last = client.responses.create(model="fake", input="say x", stream=True)
    assert last.type == "response.completed"
    assert client.responses.retrieve(last.response.id).output_text == "x"


def test_calls_and_their_results(client: openai.OpenAI) -> None:
    first = client.responses.create(model="fake", input=f"say {CALL}", tools=[WEATHER])
    [call] = first.output
    assert call.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    second = client.responses.create(model="fake", input=[result], previous_response_id=first.id)
    assert second.output_text == "You said: weather returned: sun"
    items: Any = [
        {"type": "message", "role": "developer", "content": "Be kind."},
        {"role": "user", "content": "x"},
        {"type": "reasoning", "id": "r", "summary": []},
        {"role": "assistant", "content": "I look."},
        {"type": "function_call", "call_id": "1", "name": "a", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "b", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "two"}]},
        {"type": "function_call_output", "call_id": "1", "output": "one"},
    ]
    third = client.responses.create(model="fake", input=items, store=False)
    assert third.output_text == "You said: b returned: two\na returned: one"


def test_a_call_says_which_namespace_it_is_of(client: openai.OpenAI) -> None:
    said = '{"tool_calls": [{"name": "ask", "arguments": {"city": "Rome"}}]}'
    first = client.responses.create(model="fake", input=f"say {said}", tools=[WEATHER, AGENTS])
    [call] = first.output
    assert call.type == "function_call" and call.model_dump()["namespace"] == "agents"
    assert (call.name, call.arguments) == ("ask", '{"city": "Rome"}')
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    told: Any = [{"role": "user", "content": "x"}, call.model_dump(), result]
    second = client.responses.create(model="fake", input=told, tools=[WEATHER, AGENTS])
    assert second.output_text == "You said: ask returned: rain"


def test_functions_of_one_name_are_told_apart_by_their_namespaces(client: openai.OpenAI) -> None:
    twins: Any = {**AGENTS, "tools": [WEATHER]}
    for name, namespace in (("weather", None), ("agents.weather", "agents")):
        said = json.dumps({"tool_calls": [{"name": name, "arguments": {"city": "Rome"}}]})
        [call] = client.responses.create(model="fake", input=f"say {said}", tools=[WEATHER, twins]).output
        assert call.type == "function_call" and call.name == "weather"
        assert call.model_dump().get("namespace") == namespace
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        told: Any = [{"role": "user", "content": "x"}, call.model_dump(), result]
        again = client.responses.create(model="fake", input=told, tools=[WEATHER, twins])
        assert again.output_text == f"You said: {name} returned: rain"


def test_forms_and_options(client: openai.OpenAI, server: RunningServer) -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "integer"}, "strict": True}
    response = client.responses.create(model="fake", input="say 5", text={"format": schema, "verbosity": "low"})  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert response.output_text == "5"
    body = {
        "input": "say abcdef",
        "stop": "d",
        "seed": 1,
        "temperature": 0,
        "reasoning": {"effort": "low"},
        "user": "me",
    }
    reply = post(server, {**body, "truncation": "auto", "include": ["reasoning.encrypted_content"]})
    assert reply.json()["output"][0]["content"][0]["text"] == "abc" and WARNING_HEADER not in reply.headers
    forced = client.responses.create(
        model="fake", input=f"say {CALL}", tools=[WEATHER], tool_choice={"type": "function", "name": "weather"}
    )
    assert [item.type for item in forced.output] == ["function_call"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"input": "a", "background": True}, "background"),
        ({"input": "a", "conversation": "c"}, "conversation"),
        ({"input": "a", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools.0"),
        ({"input": "a", "tools": [WEATHER, {**WEATHER, "description": "again"}]}, None),
        ({"input": "a", "tools": [{**AGENTS, "tools": [{"type": "custom", "name": "b"}]}]}, "tools.0.tools.0.type"),
        ({"input": "a", "tool_choice": "required"}, None),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "a", "temperature": 3}, "temperature"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.type",
        ),
        ({"input": "a", "text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format"),
        ({"input": "a", "metadata": {"a": 1}}, "metadata.a"),
        ({"input": "a" * 5000}, None),
    ],
)
def test_what_is_refused(server: RunningServer, body: dict[str, Any], param: str | None) -> None:
    reply = post(server, body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param) and error["message"]


def test_an_engine_that_fails_midway_is_an_event(server: RunningServer) -> None:
    reply = post(server, {"input": "fail", "stream": True})
    last = json.loads(reply.text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "the fake engine was asked to fail"}


def test_keys_and_limits(start_server: StartServer) -> None:
    guarded = start_server(api_key="k", max_request_bytes=200, model_name="fake")
    with guarded.http() as http:
        assert http.get("/v1/responses/resp_1").status_code == 401
        http.headers["authorization"] = "Bearer k"
        kept = http.post("/v1/responses", json={"input": "say a"}).json()
        assert http.get(f"/v1/responses/{kept['id']}").json() == kept
        assert http.get(f"/v1/responses/{kept['id']}?stream=true").json()["error"]["param"] == "stream"
        assert http.post("/v1/responses", json={"input": "a" * 200}).status_code == 413
        told = http.get("/metrics").text
    assert 'phi3_onnx_requests_total{path="/v1/responses",status="200"} 1.0' in told
    assert 'phi3_onnx_requests_total{path="/v1/responses/{response}",status="200"} 1.0' in told
    assert 'phi3_onnx_responses_kept{model="fake"} 1.0' in told


def test_what_is_kept_is_bounded() -> None:
    def stored(number: int, size: int = 10) -> Stored:
        return Stored({"id": str(number), "text": "x" * size}, ())

    store = ResponseStore(most=3, most_bytes=1000)
    for number in range(4):
        store.keep(stored(number))
    assert store.find("0") is None and store.find("1") and len(store) == 3
    store.keep(stored(4))  # 1 was asked for since 2
    assert store.find("2") is None and store.find("1")
    store.keep(stored(5, 900))
    assert store.find("5") and store.num_bytes <= 1000
    store.keep(stored(6, 2000))
    assert store.find("6") is None and store.num_bytes <= 1000
    assert not store.drop("6") and (len(store) > 0 or store.num_bytes == 0)
    for number in range(6):
        store.drop(str(number))
    assert (len(store), store.num_bytes) == (0, 0)


def test_what_is_kept_takes_the_memory_that_is_counted() -> None:
    store = ResponseStore()
    tracemalloc.start()
    try:
        for number in range(10):
            store.keep(Stored({"id": str(number)}, [{"role": "user", "content": "a"} for _ in range(5000)]))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.5 * store.num_bytes < taken < 1.5 * store.num_bytes
    assert (found := store.find("3")) and found.messages[4999] == {"role": "user", "content": "a"}
