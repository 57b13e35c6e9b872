"""Ollama's protocol: what its clients send and get; the expected lines are written out from its documentation."""

import json
from datetime import datetime
from typing import Any

import httpx
import pytest
from phi3_onnx.runtime.server.parameters import WARNING_HEADER

from .conftest import RunningServer, StartServer

SAY = [{"role": "user", "content": "say Grüße, 🌍!"}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = '{"tool_calls": [{"name": "weather", "arguments": {"city": "Paris"}}]}'
COUNTS = {"total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"}


def post(server: RunningServer, path: str, body: dict[str, Any]) -> httpx.Response:
    with server.http() as http:
        return http.post(path, json={"model": "fake", **body})


def whole(server: RunningServer, path: str, **body: Any) -> dict[str, Any]:
    reply = post(server, path, {**body, "stream": False})
    assert reply.status_code == 200, reply.text
    return reply.json()


def lines(server: RunningServer, path: str, **body: Any) -> list[dict[str, Any]]:
    reply = post(server, path, body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in reply.text.splitlines()]


def test_a_chat_is_streamed_in_lines_unless_it_is_not_wanted(server: RunningServer) -> None:
    *pieces, last = lines(server, "/api/chat", messages=SAY)
    assert len(pieces) > 1 and not any(line["done"] for line in pieces)
    assert "".join(line["message"]["content"] for line in pieces) == "Grüße, 🌍!"
    assert (last["done"], last["done_reason"], last["model"]) == (True, "stop", "fake")
    assert last["message"] == {"role": "assistant", "content": ""} and last.keys() >= COUNTS
    answer = whole(server, "/api/chat", messages=SAY)
    assert answer["message"] == {"role": "assistant", "content": "Grüße, 🌍!"}
    assert answer.keys() == last.keys()
    for name in ("eval_count", "prompt_eval_count", "done_reason"):
        assert answer[name] == last[name]
    assert answer["eval_count"] == len("Grüße, 🌍!".encode()) + 1
    # Nanoseconds: the parts are within the whole, and no request takes less than 10 microseconds.
    assert answer["total_duration"] >= answer["prompt_eval_duration"] + answer["eval_duration"] > 10_000
    datetime.fromisoformat(answer["created_at"])


@pytest.mark.parametrize(
    ("options", "text", "reason"),
    [
        ({"num_predict": 3}, "abc", "length"),
        ({"num_predict": -1}, "abcdef", "stop"),
        ({"num_predict": 0, "seed": -1, "num_ctx": 2048}, "abcdef", "stop"),
        ({"stop": ["d"]}, "abc", "stop"),
        ({"temperature": 0, "top_k": 40, "repeat_penalty": 1.0, "min_p": 0.1, "typical_p": 1.0}, "abcdef", "stop"),
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_options(server: RunningServer, path: str, options: dict[str, Any], text: str, reason: str) -> None:
    asked = {"messages": [{"role": "user", "content": "say abcdef"}], "prompt": "say abcdef"}
    asked.pop("prompt" if path == "/api/chat" else "messages")
    answer = whole(server, path, **asked, options=options)
    given = answer["response"] if path == "/api/generate" else answer["message"]["content"]
    assert (given, answer["done_reason"]) == (text, reason)
    streamed = lines(server, path, **asked, options=options)
    pieces = [line["response"] if path == "/api/generate" else line["message"]["content"] for line in streamed]
    assert ("".join(pieces), streamed[-1]["done_reason"]) == (text, reason)


def test_generates_in_the_template_or_raw(server: RunningServer) -> None:
    assert whole(server, "/api/generate", prompt="say hello", system="Be kind.")["response"] == "hello"
    assert whole(server, "/api/generate", prompt="uvw", raw=True)["response"] == "xyz"
    formed = whole(server, "/api/generate", prompt="say 5", format={"type": "integer"}, raw=False)
    assert formed["response"] == "5"


def test_log_probabilities(server: RunningServer) -> None:
    answer = whole(server, "/api/chat", messages=[{"role": "user", "content": "say hi"}], logprobs=True, top_logprobs=2)
    assert [entry["token"] for entry in answer["logprobs"]] == ["h", "i"]
    assert [len(entry["top_logprobs"]) for entry in answer["logprobs"]] == [2, 2]
    streamed = lines(
        server, "/api/chat", messages=[{"role": "user", "content": "say hi"}], logprobs=True, top_logprobs=2
    )
    assert [entry for line in streamed for entry in line.get("logprobs", [])] == answer["logprobs"]


def test_calls_tools(server: RunningServer) -> None:
    asked = {"messages": [{"role": "user", "content": f"say {CALL}"}], "tools": [WEATHER]}
    answer = whole(server, "/api/chat", **asked)
    [call] = answer["message"]["tool_calls"]
    assert call["function"] == {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}
    assert (answer["message"]["content"], answer["done_reason"]) == ("", "stop")
    streamed = lines(server, "/api/chat", **asked)
    [again] = [call for line in streamed for call in line["message"].get("tool_calls", [])]
    assert again["function"] == call["function"] and streamed[-1]["done"]
    assert not any(line["message"]["content"] for line in streamed)


def test_results_of_tools_find_their_calls(server: RunningServer) -> None:
    def call(name: str) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {}}}

    def told(*messages: dict[str, Any]) -> list[str]:
        """Return what the messages say of the results, from the prompt that a wrong command repeats."""
        before = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call("a"), call("b")]}]
        answer = whole(server, "/api/chat", messages=[*before, *messages])
        return answer["message"]["content"].removeprefix("You said: ").splitlines()

    first, second = {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}
    assert told(first, second) == ["a returned: 1", "b returned: 2"]
    assert told({**first, "tool_name": "b"}, {**second, "tool_name": "a"}) == ["b returned: 1", "a returned: 2"]
    assert told({**first, "tool_name": "c"}) == ["The function returned: 1"]


def test_what_is_known_of_the_model(server: RunningServer) -> None:
    with server.http() as http:
        [card] = http.get("/api/tags").json()["models"]
        [running] = http.get("/api/ps").json()["models"]
        assert http.get("/api/version").json()["version"]
    assert card["name"] == card["model"] == "fake" and card["size"] > 0
    datetime.fromisoformat(card["modified_at"])
    assert running["context_length"] == 4096 and running["digest"] == card["digest"]
    shown = post(server, "/api/show", {"verbose": True}).json()
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["model_info"]["phi3.context_length"] == 4096 and shown["model_info"]["phi3.block_count"] == 2
    assert shown["details"]["family"] == "phi3" and "<|assistant|>" in shown["template"]
    assert post(server, "/api/show", {"model": None, "name": "fake"}).json() == shown


def test_asks_for_the_model_alone(server: RunningServer) -> None:
    assert whole(server, "/api/generate", keep_alive="5m")["done_reason"] == "load"
    assert whole(server, "/api/chat", messages=[])["message"] == {"role": "assistant", "content": ""}


def test_names_of_models(server: RunningServer) -> None:
    reply = post(server, "/api/chat", {"model": "fake:latest", "messages": SAY, "stream": False, "mood": 1})
    assert reply.headers[WARNING_HEADER] == "unknown and ignored: mood"
    reply = post(server, "/api/chat", {"model": "llama3.2", "messages": SAY})
    assert reply.headers[WARNING_HEADER] == "the model 'llama3.2' is not served; 'fake' answers instead"


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "a", "images": ["x"]}]}, "messages.0.images"),
        ("/api/generate", {"prompt": "a", "images": ["x"]}, "unsupported parameter: images"),
        ("/api/generate", {"prompt": "a", "suffix": "b"}, "unsupported parameter: suffix"),
        ("/api/generate", {"prompt": "a", "context": [1]}, "unsupported parameter: context"),
        ("/api/generate", {"prompt": "a", "template": "{{ .Prompt }}"}, "unsupported parameter: template"),
        ("/api/chat", {"messages": SAY, "think": True}, "unsupported parameter: think"),
        ("/api/chat", {"messages": SAY, "think": "high"}, "unsupported parameter: think"),
        ("/api/chat", {"messages": SAY, "options": {"mirostat": 2}}, "unsupported parameter: options.mirostat"),
        ("/api/chat", {"messages": SAY, "options": {"temperature": -1}}, "options.temperature: "),
        ("/api/chat", {"messages": SAY, "options": {"num_predict": "x"}}, "options.num_predict: "),
        ("/api/chat", {"messages": SAY, "format": "yaml"}, "format"),
        ("/api/chat", {"messages": SAY, "format": {"type": "wrong"}}, "json_schema is not understood"),
        ("/api/chat", {"messages": SAY, "tools": [WEATHER, WEATHER]}, "two functions of one name"),
        ("/api/chat", {"messages": [{"role": "king", "content": "a"}]}, "messages.0.role"),
        ("/api/chat", {"messages": [{"role": "user", "content": "say " + "a" * 5000}]}, "context"),
    ],
)
def test_what_is_refused(server: RunningServer, path: str, body: dict[str, Any], words: str) -> None:
    reply = post(server, path, body)
    assert reply.status_code == 400, reply.text
    assert reply.json().keys() == {"error"} and words in reply.json()["error"]


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings", "/api/pull", "/api/create"])
def test_what_is_not_here_says_so(server: RunningServer, path: str) -> None:
    reply = post(server, path, {})
    assert reply.status_code == 501 and reply.json()["error"].startswith(f"{path} is not available here: ")


def test_an_engine_that_fails_midway_is_a_line(server: RunningServer) -> None:
    answer = lines(server, "/api/chat", messages=[{"role": "user", "content": "fail"}])
    assert answer == [{"error": "the fake engine was asked to fail"}]


def test_keys_limits_and_counts(start_server: StartServer) -> None:
    guarded = start_server(api_key="k", max_request_bytes=200, model_name="fake")
    with guarded.http() as http:
        assert http.get("/api/tags").status_code == 401
        http.headers["authorization"] = "Bearer k"
        asked = {"model": "fake", "messages": [{"role": "user", "content": "say a"}]}
        assert http.post("/api/chat", json=asked).status_code == 200
        large = http.post("/api/chat", json={"model": "fake", "messages": [{"role": "user", "content": "a" * 200}]})
        assert large.status_code == 413 and large.json().keys() == {"error"}
        assert 'phi3_onnx_requests_total{path="/api/chat",status="200"} 1.0' in http.get("/metrics").text
