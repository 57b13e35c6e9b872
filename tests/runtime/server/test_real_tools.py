"""Tools with the small real model, which is too weak to call any by itself: what forces a call gives a call."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from phi3_onnx.export import export
from phi3_onnx.runtime import Model, load
from phi3_onnx.runtime.server.settings import Settings
from phi3_onnx.runtime.server.worker import PackageLoader

from .conftest import RunningServer

pytestmark = pytest.mark.real

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
}
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "The weather in a city.", "parameters": WEATHER},
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
ASK: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


class GenAiLoader(PackageLoader):
    """Loads a package in ONNX Runtime GenAI, though it could be decoded together."""

    def __call__(self) -> Model:
        return load(self.package)


@pytest.fixture(scope="module")
def package(small_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(small_gguf, "cpu-int4-rtn", tmp_path_factory.mktemp("tools") / "package")


@pytest.fixture(scope="module", params=[PackageLoader, GenAiLoader])
def client(request: pytest.FixtureRequest, package: Path) -> Iterator[openai.OpenAI]:
    server = RunningServer(request.param(str(package)), Settings(model_name="small", tool_calls=3))
    yield server.client()
    server.close()


def ask(client: openai.OpenAI, **values: Any) -> Any:
    values = {"model": "small", "messages": ASK, "tools": TOOLS, "temperature": 0, "max_tokens": 300, **values}
    return client.chat.completions.create(**values)


def test_a_named_function_is_called_once(client: openai.OpenAI) -> None:
    choice = ask(client, tool_choice=NAMED).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert call.function.name == "weather" and set(json.loads(call.function.arguments)) == {"city", "unit"}


def test_required_calls_are_bounded_and_end(client: openai.OpenAI) -> None:
    choice = ask(client, tool_choice="required", parallel_tool_calls=True).choices[0]
    assert choice.finish_reason == "tool_calls" and 1 <= len(choice.message.tool_calls) <= 3
    for unless_told in ({}, {"parallel_tool_calls": False}):
        one = ask(client, tool_choice="required", **unless_told).choices[0]
        assert one.finish_reason == "tool_calls" and len(one.message.tool_calls) == 1


def test_a_stream_of_a_call_is_the_whole_one(client: openai.OpenAI) -> None:
    whole = ask(client, tool_choice="required").choices[0]
    deltas = [chunk.choices[0].delta for chunk in ask(client, tool_choice="required", stream=True)]
    calls = [call.function for delta in deltas for call in delta.tool_calls or []]
    assert [(call.name, call.arguments) for call in calls] == [
        (call.function.name, call.function.arguments) for call in whole.message.tool_calls
    ]
    assert "".join(delta.content or "" for delta in deltas) == ""


def test_what_a_call_returned_is_answered(client: openai.OpenAI) -> None:
    called = ask(client, tool_choice=NAMED).choices[0].message
    returned = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "12 degrees"}
    messages = [*ASK, called.model_dump(exclude_none=True), returned]
    answer = ask(client, messages=messages, tool_choice="none", max_tokens=30).choices[0]
    assert answer.message.content and not answer.message.tool_calls
