"""Anthropic's protocol: what its clients send and get, from an engine whose answers are known to the letter."""

import json
import re
from typing import Any

import httpx
import pytest
from phi3_onnx.runtime.server.parameters import WARNING_HEADER

from .conftest import RunningServer, StartServer
from .test_streams import built_of_events, without

WEATHER = {
    "name": "weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '{"tool_calls": [{"name": "weather", "arguments": {"city": "Paris"}}]}'


def post(server: RunningServer, body: dict[str, Any], path: str = "/v1/messages") -> httpx.Response:
    with server.http(headers={"anthropic-version": "2023-06-01", "x-api-key": "none"}) as http:
        return http.post(path, json={"model": "fake", "max_tokens": 100, **body})


def say(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"say {text}"}]


def whole(server: RunningServer, **body: Any) -> dict[str, Any]:
    reply = post(server, body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def events(server: RunningServer, **body: Any) -> list[dict[str, Any]]:
    reply = post(server, {**body, "stream": True})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in reply.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_message(server: RunningServer) -> None:
    message = whole(server, messages=say("Grüße, 🌍!"))
    assert message["content"] == [{"type": "text", "text": "Grüße, 🌍!"}]
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "fake")
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    counts = message["usage"]
    assert counts["output_tokens"] == len("Grüße, 🌍!".encode()) + 1
    count = post(server, {"messages": say("Grüße, 🌍!")}, "/v1/messages/count_tokens").json()
    assert count == {"input_tokens": counts["input_tokens"] + counts["cache_read_input_tokens"]}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": say("Grüße, 🌍!")},
        {"messages": say("")},
        {"messages": say("one two three"), "stop_sequences": ["zebra", "two"]},
        {"messages": say(CALL), "tools": [WEATHER]},
        {"messages": say("no call"), "tools": [WEATHER], "tool_choice": {"type": "auto"}},
        {"messages": say(CALL), "tools": [WEATHER], "max_tokens": 30},
    ],
)
def test_events_build_up_the_message(server: RunningServer, body: dict[str, Any]) -> None:
    streamed = events(server, **body)
    assert [streamed[0]["type"], streamed[-1]["type"]] == ["message_start", "message_stop"]
    # How much of the prompt is in a cache is not the same the second time.
    differs = {"id", "input_tokens", "cache_read_input_tokens"}
    assert without(built_of_events(streamed), differs) == without(whole(server, **body), differs)


@pytest.mark.parametrize(
    ("body", "text", "reason", "stop"),
    [
        ({"max_tokens": 3}, "abc", "max_tokens", None),
        ({"stop_sequences": ["d", "c"]}, "ab", "stop_sequence", "c"),
        ({"temperature": 0, "top_k": 5, "top_p": 0.9}, "abcdef", "end_turn", None),
        (
            {"thinking": {"type": "adaptive"}, "metadata": {"user_id": "u"}, "service_tier": "auto"},
            "abcdef",
            "end_turn",
            None,
        ),
    ],
)
def test_parameters(server: RunningServer, body: dict[str, Any], text: str, reason: str, stop: str | None) -> None:
    reply = post(server, {"messages": say("abcdef"), **body})
    message = reply.json()
    assert message["content"] == [{"type": "text", "text": text}]
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, stop)
    assert WARNING_HEADER not in reply.headers


def test_calls_a_tool(server: RunningServer) -> None:
    message = whole(server, messages=say(CALL), tools=[WEATHER])
    [block] = message["content"]
    assert (block["type"], block["name"], block["input"]) == ("tool_use", "weather", {"city": "Paris"})
    assert message["stop_reason"] == "tool_use"
    forced = whole(server, messages=say(CALL), tools=[WEATHER], tool_choice={"type": "tool", "name": "weather"})
    assert [entry["name"] for entry in forced["content"]] == ["weather"]


def test_blocks_become_the_prompt(server: RunningServer) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}},
                {"type": "tool_use", "id": "t2", "name": "weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t2", "content": "sun"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "text", "text": "no"}],
                    "is_error": True,
                },
            ],
        },
    ]
    message = whole(server, messages=messages, tools=[WEATHER], system=[{"type": "text", "text": "Be kind."}])
    assert message["content"][0]["text"] == "You said: weather returned: sun\nweather returned: Error: no"
    told = whole(server, messages=[*messages, {"role": "user", "content": [{"type": "text", "text": "say a"}] * 2}])
    assert told["content"][0]["text"] == "a\nsay a"


def test_an_answer_of_a_form(server: RunningServer) -> None:
    form = {"type": "json_schema", "schema": {"type": "integer"}}
    for asked in ({"output_format": form}, {"output_config": {"format": form, "effort": "low"}}):
        assert whole(server, messages=say("5"), **asked)["content"] == [{"type": "text", "text": "5"}]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": say("a"), "max_tokens": None}, "max_tokens: Field required"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "'document'"),
        ({"messages": say("a"), "tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"messages": say("a"), "mcp_servers": [{"url": "x"}]}, "unsupported parameter: mcp_servers"),
        ({"messages": say("a"), "temperature": 1.5}, "temperature"),
        ({"messages": say("a"), "tool_choice": {"type": "any"}}, "tool_choice needs tools"),
        ({"messages": say("a"), "stop_sequences": [""]}, "empty"),
        ({"messages": say("a" * 5000)}, "4096"),
    ],
)
def test_what_is_refused(server: RunningServer, body: dict[str, Any], words: str) -> None:
    reply = post(server, body)
    assert reply.status_code == 400, reply.text
    told = reply.json()
    assert told["type"] == "error" and told["error"]["type"] == "invalid_request_error"
    assert words in told["error"]["message"]


def test_a_prompt_that_is_too_long_is_refused_in_anthropics_words(server: RunningServer) -> None:
    """Claude Code looks for them, and for the numbers."""
    long = post(server, {"messages": say("a" * 5000)}).json()["error"]["message"]
    assert re.match(r"prompt is too long: \d{4} tokens > 4096 maximum; shorten the prompt", long)
    both = post(server, {"messages": say("a"), "max_tokens": 4096}).json()["error"]["message"]
    assert re.match(r"input length and `max_tokens` exceed context limit: \d+ \+ 4096 > 4096; ", both)


def test_an_engine_that_fails_midway_is_an_event(server: RunningServer) -> None:
    last = events(server, messages=[{"role": "user", "content": "fail"}])[-1]
    assert last == {"type": "error", "error": {"type": "api_error", "message": "the fake engine was asked to fail"}}


def test_keys_limits_names_and_counts(start_server: StartServer) -> None:
    guarded = start_server(api_key="k", max_request_bytes=200, model_name="fake", strict=True)
    asked = {"model": "fake", "max_tokens": 9, "messages": say("a")}
    with guarded.http() as http:
        refused = http.post("/v1/messages", json=asked)
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        http.headers["x-api-key"] = "k"
        assert http.post("/v1/messages", json=asked).status_code == 200
        large = http.post("/v1/messages", json={**asked, "messages": say("a" * 200)})
        assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")
        other = http.post("/v1/messages", json={**asked, "model": "claude"})
        assert (other.status_code, other.json()["error"]["type"]) == (404, "not_found_error")
        assert 'phi3_onnx_requests_total{path="/v1/messages",status="200"} 1.0' in http.get("/metrics").text
