"""What is refused, with which status and which words."""

import json
from typing import Any

import httpx
import openai
import pytest
from phi3_onnx.runtime.server.parameters import WARNING_HEADER

from .conftest import RunningServer, StartServer

CHAT = {"messages": [{"role": "user", "content": "say hi"}]}


def post(server: RunningServer, body: Any, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
    with server.http() as http:
        if isinstance(body, bytes):
            return http.post(path, content=body, headers={"Content-Type": "application/json"}, **options)
        return http.post(path, json=body, **options)


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"stop_token_ids": [5]}, "stop_token_ids"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages.0.audio"),
    ],
)
def test_an_unsupported_parameter_is_refused_by_name(server: RunningServer, extra: dict[str, Any], param: str) -> None:
    reply = post(server, {**CHAT, **extra})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["message"].startswith(f"unsupported parameter: {param} (")
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"unheard_of": 1}, "unheard_of"),
        ({"stream": True, "stream_options": {"chatty": True}}, "stream_options.chatty"),
        ({"messages": [{"role": "user", "content": "a", "mood": "good"}]}, "messages.0.mood"),
    ],
)
def test_a_strict_server_refuses_unknown_names(start_server: StartServer, extra: dict[str, Any], param: str) -> None:
    strict = start_server(strict=True, model_name="fake")
    error = post(strict, {**CHAT, **extra}).json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert error["message"] == f"unsupported parameter: {param} (unknown parameter)"
    assert post(strict, {**CHAT, "model": "other"}).status_code == 404
    reply = post(strict, {**CHAT, "model": "fake", "store": True})
    assert reply.status_code == 200 and WARNING_HEADER not in reply.headers


@pytest.mark.parametrize("name", ["best_of", "suffix", "logit_bias"])
def test_so_it_is_for_plain_completions(server: RunningServer, name: str) -> None:
    reply = post(server, {"prompt": "a", name: {"best_of": 2, "suffix": "b"}.get(name, 1)}, "/v1/completions")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, name)


def test_what_asks_for_nothing_is_taken(server: RunningServer) -> None:
    nothing = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "store": False,
        "tools": [],
        "seed": None,
    }
    assert post(server, {**CHAT, **nothing, "seed": None, "user": "me"}).status_code == 200
    assert post(server, {**CHAT, "frequency_penalty": False}).status_code == 400


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"min_tokens": 5, "max_tokens": 4}, None),
        ({"repeat_penalty": 1.1, "repetition_penalty": 1.2}, None),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"n": 0}, "n"),
        ({"n": 1.0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 2**64}, "seed"),
        ({"stop": [""]}, None),
        ({"stop": 5}, "stop"),
        ({"stop": [str(number) for number in range(65)]}, None),
        ({"stop": "a" * 257}, None),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
        ({"top_logprobs": 2}, None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, None),
        ({"stream_options": {"include_usage": True}}, None),
        ({"tool_choice": "required"}, None),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"regex": "a", "guided_choice": ["a"]}, None),
        ({"guided_regex": "a", "regex": "b"}, None),
        ({"structured_outputs": {"regex": "a", "json_object": True}}, None),
        ({"response_format": {"type": "json_object"}, "grammar": "root ::= [a]"}, None),
        ({"json_schema": "{"}, None),
        ({"json_schema": ["a"]}, "json_schema"),
        ({"regex": 5}, "regex"),
        ({"guided_choice": [""]}, None),
        ({"guided_choice": "yes"}, "guided_choice"),
        ({"grammar": "no such thing"}, None),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"guided_whitespace_pattern": " ?"}, "guided_whitespace_pattern"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    ],
)
def test_a_wrong_value_is_refused(server: RunningServer, extra: dict[str, Any], param: str | None) -> None:
    reply = post(server, {**CHAT, **extra})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    if param:
        assert error["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": NaN}',
        b'{"a": "\\ud800"}',
        b"[" * 5000,
        b"1e999",
    ],
)
def test_a_body_that_is_no_json_object_is_refused(server: RunningServer, body: bytes) -> None:
    reply = post(server, body)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_prompt_past_the_context_is_refused(server: RunningServer) -> None:
    reply = post(server, {"messages": [{"role": "user", "content": "a" * 5000}]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "context 4096" in reply.json()["error"]["message"]
    assert post(server, {**CHAT, "max_tokens": 4096}).status_code == 400


def test_token_ids_and_empty_prompts_are_checked(server: RunningServer) -> None:
    assert "0 to 260" in post(server, {"prompt": [10_000]}, "/v1/completions").json()["error"]["message"]
    assert post(server, {"prompt": ""}, "/v1/completions").status_code == 400
    assert post(server, {"prompt": []}, "/v1/completions").status_code == 400


def test_paths_and_methods(server: RunningServer) -> None:
    with server.http() as http:
        assert http.get("/v1/nothing").json()["error"]["message"] == "there is nothing at /v1/nothing"
        assert http.get("/v1/chat/completions").status_code == 405


@pytest.mark.parametrize("kind", [{"Content-Type": "text/plain"}, {}])
@pytest.mark.parametrize("browser", [{"Origin": "http://a.test"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_page_of_another_site_gets_nothing_answered(
    server: RunningServer, kind: dict[str, str], browser: dict[str, str]
) -> None:
    with server.http() as http:
        reply = http.post("/v1/chat/completions", content=json.dumps(CHAT), headers={**kind, **browser})
    assert (reply.status_code, reply.json()["error"]["type"]) == (415, "invalid_request_error")


@pytest.mark.parametrize("kind", [{"Content-Type": "application/x-www-form-urlencoded"}, {}])
def test_what_is_no_browser_may_leave_the_content_type_out(server: RunningServer, kind: dict[str, str]) -> None:
    with server.http() as http:
        assert http.post("/api/chat", content=json.dumps({"model": "fake", **CHAT}), headers=kind).status_code == 200


def test_an_engine_that_fails_at_a_request_says_so_and_goes_on(server: RunningServer) -> None:
    reply = post(server, {"messages": [{"role": "user", "content": "fail"}]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "engine_error")
    assert post(server, CHAT).status_code == 200


def test_a_server_with_a_key_answers_only_who_has_it(start_server: StartServer) -> None:
    server = start_server(api_key="sécret")
    messages: Any = CHAT["messages"]
    for wrong in ("nonsense", "s", "secret2"):
        with pytest.raises(openai.AuthenticationError) as caught:
            server.client(api_key=wrong).chat.completions.create(model="fake", messages=messages)
        assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
    with server.http() as http:
        assert http.get("/v1/models").headers["WWW-Authenticate"] == "Bearer"
        assert http.get("/metrics").status_code == 401
        assert http.get("/health").status_code == http.get("/").status_code == 200
        right = {b"Authorization": "Bearer sécret".encode()}
        assert http.get("/v1/models", headers=right).status_code == 200


def test_a_large_request_is_refused_whether_it_says_its_size_or_not(start_server: StartServer) -> None:
    server = start_server(max_request_bytes=1000)
    body = json.dumps({"messages": [{"role": "user", "content": "a" * 1000}]}).encode()
    assert post(server, body).status_code == 413

    def in_parts() -> Any:
        yield from (body[i : i + 100] for i in range(0, len(body), 100))

    with server.http() as http:
        reply = http.post("/v1/completions", content=in_parts(), headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


def test_another_host_is_refused_on_this_machine(server: RunningServer, start_server: StartServer) -> None:
    with server.http(headers={"Host": "attacker.example"}) as http:
        reply = http.get("/v1/models")
        assert reply.status_code == 403 and "--allow-host attacker.example" in reply.json()["error"]["message"]
    with server.http(headers={"Host": "localhost:1234"}) as http:
        assert http.get("/v1/models").status_code == 200
    behind_proxy = start_server(allowed_hosts=("chat.example",))
    with behind_proxy.http(headers={"Host": "chat.example"}) as http:
        assert http.get("/v1/models").status_code == 200


def test_pages_of_other_origins_read_answers_only_where_asked(server: RunningServer, start_server: StartServer) -> None:
    origin = {"Origin": "https://app.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with server.http() as http:
        assert "Access-Control-Allow-Origin" not in http.get("/v1/models", headers=origin).headers
        assert http.options("/v1/chat/completions", headers=preflight).status_code == 405
    with start_server(cors=("https://app.example",), api_key="key").http() as http:
        reply = http.options("/v1/chat/completions", headers=preflight)
        assert reply.status_code == 200
        # An error, too: without these lines the page could not read why.
        refused = http.get("/v1/models", headers=origin)
        assert refused.status_code == 401
        assert refused.headers["Access-Control-Allow-Origin"] == "https://app.example"
        other = http.get("/v1/models", headers={"Origin": "https://other.example"})
        assert other.headers.get("Access-Control-Allow-Origin") != "https://other.example"


def test_embeddings_are_refused_with_the_reason(server: RunningServer) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        server.client(max_retries=0).embeddings.create(model="fake", input="a")
    assert (caught.value.status_code, caught.value.code) == (501, "embeddings_not_supported")
    assert "use an embedding model" in caught.value.message


def test_a_models_card_states_its_context_length(server: RunningServer) -> None:
    with server.http() as http:
        (card,) = http.get("/v1/models").json()["data"]
        assert http.get(f"/v1/models/{card['id']}").json() == card
    assert card["context_length"] == card["max_model_len"] == 4096
