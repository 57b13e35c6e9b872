"""The description of the server: complete, valid where it is used, and shown by a page that needs nothing else."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from phi3_onnx.runtime.server.app import create_app
from phi3_onnx.runtime.server.openapi import BODIES
from phi3_onnx.runtime.server.process import EngineProcess
from phi3_onnx.runtime.server.settings import Settings
from starlette.routing import Route

from .conftest import RunningServer, StartServer

ASK = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def told(server: RunningServer) -> dict[str, Any]:
    with server.http() as http:
        return http.get("/openapi.json").json()


def validator(told: dict[str, Any], path: str) -> Draft202012Validator:
    schema = told["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return Draft202012Validator({**told, **schema})


def references(table: Any) -> Iterator[str]:
    if isinstance(table, dict):
        yield from [table["$ref"]] if isinstance(table.get("$ref"), str) else []
        for value in table.values():
            yield from references(value)
    elif isinstance(table, list):
        for value in table:
            yield from references(value)


def test_every_route_is_there(told: dict[str, Any]) -> None:
    app = create_app(EngineProcess(lambda: None, 1), Settings())
    routes = {
        (route.path.replace(":path", ""), method)
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    found = {(path, method.upper()) for path, methods in told["paths"].items() for method in methods}
    assert found == {(path, method) for path, method in routes if method != "HEAD"}
    assert {(path, "POST") for path in BODIES} <= found
    operations = [operation for methods in told["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] for operation in operations)


def test_references_lead_somewhere_and_schemas_are_valid(told: dict[str, Any]) -> None:
    schemas = told["components"]["schemas"]
    assert {reference.rpartition("/")[2] for reference in references(told)} <= set(schemas)
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("path", "body", "valid"),
    [
        ("/v1/chat/completions", {"messages": ASK, "temperature": 0.5, "store": True, "unheard_of": 1}, True),
        ("/v1/chat/completions", {"messages": ASK, "stop": "a", "seed": None, "functions": [], "n": 2}, True),
        ("/v1/chat/completions", {"messages": ASK, "functions": [{"name": "f"}]}, False),
        ("/v1/chat/completions", {"messages": ASK, "temperature": 3}, False),
        ("/v1/chat/completions", {"messages": ASK, "repeat_penalty": "x"}, False),
        ("/v1/chat/completions", {"messages": "Hi"}, False),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 5}, True),
        ("/v1/completions", {}, False),
        ("/v1/responses", {"input": [{"role": "user", "content": "a"}], "max_output_tokens": 5}, True),
        ("/v1/responses", {"input": "a", "background": True}, False),
        (
            "/v1/messages",
            {"model": "m", "max_tokens": 5, "messages": ASK, "system": [{"type": "text", "text": "a"}]},
            True,
        ),
        ("/v1/messages", {"model": "m", "messages": ASK}, False),
        ("/api/chat", {"model": "m", "messages": ASK, "options": {"num_predict": 5}, "think": False}, True),
        ("/api/chat", {"model": "m", "messages": ASK, "think": True}, False),
    ],
)
def test_schemas_say_what_is_taken(
    server: RunningServer, told: dict[str, Any], path: str, body: dict[str, Any], valid: bool
) -> None:
    assert validator(told, path).is_valid(body) == valid
    with server.http() as http:
        assert http.post(path, json=body).status_code == (200 if valid else 400)


def test_the_page_needs_nothing_else_and_no_key(start_server: StartServer) -> None:
    with start_server(api_key="k").http() as http:
        page = http.get("/docs")
        assert http.get("/openapi.json").status_code == 200
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+|@import|<link|<script src", page.text)


@pytest.mark.parametrize("stop", ["", ["a", ""], "x" * 257, ["a"] * 65])
def test_stop_texts_are_described_as_they_are_read(told: dict[str, Any], server: RunningServer, stop: Any) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        ask = {"messages": ASK} if "chat" in path else {"prompt": "Hi"}
        body = {**ask, "max_tokens": 1}
        describes = validator(told, path)
        assert describes.is_valid({**body, "stop": "a"}) and describes.is_valid({**body, "stop": ["a", "b"]})
        assert not describes.is_valid({**body, "stop": stop})
        with server.http() as http:
            assert http.post(path, json={**body, "stop": stop}).status_code == 400


def test_no_tokens_are_described_as_refused(told: dict[str, Any]) -> None:
    assert not validator(told, "/detokenize").is_valid({"tokens": []})
