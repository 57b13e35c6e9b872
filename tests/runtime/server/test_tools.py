"""Reading tool calls, and telling models of tools."""

import json
from typing import Any

import pytest
from phi3_onnx.runtime.server.errors import ApiError
from phi3_onnx.runtime.server.requests import ChatRequest
from phi3_onnx.runtime.server.tools import CallFilter, conversation, guidance, read_calls

NAMES = frozenset({"add", "now"})
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}},
    {"type": "function", "function": {"name": "now"}},
]


def request(**values: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": "go"}], "tools": TOOLS, **values})


@pytest.mark.parametrize(
    "text",
    [
        '{"tool_calls": [{"name": "add", "arguments": {"a": 1}}]}',
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": 1}}',
        '<|tool_call|>[{"name": "add", "arguments": {"a": 1}}]<|/tool_call|>',
        '[{"name": "add", "arguments": {"a": 1}}]',
        ' {"name": "add", "parameters": {"a": 1}}\n',
        '{"name": "add", "arguments": "{\\"a\\": 1}"}',
    ],
)
def test_reads_every_form_of_call(text: str) -> None:
    (call,) = read_calls(text, NAMES)
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1})


def test_reads_several_calls() -> None:
    text = '<tool_call>{"name": "now"}</tool_call>\n<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    assert [(call.name, call.arguments) for call in read_calls(text, NAMES)] == [("now", "{}"), ("add", "{}")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It is noon.",
        "{not json",
        '{"name": "unknown", "arguments": {}}',
        '{"name": "add", "arguments": [1]}',
        '{"name": "add", "arguments": "1"}',
        '[{"name": "add"}, 5]',
        '{"answer": 42}',
        "[" * 100_000,
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert read_calls(text, NAMES) == []


def feed(text: str, several: bool = True, size: int = 1) -> tuple[str, str, list[str]]:
    """Return what a filter shows on the way, what at the end, and the calls' names."""
    calls = CallFilter(request().tools, several)
    shown = "".join(calls.push(text[i : i + size]) for i in range(0, len(text), size))
    rest, found = calls.finish()
    return shown, rest, [call.name for call in found]


CALL = '<tool_call>{"name": "now"}</tool_call>'


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Plain text.", ("Plain text.", "", [])),
        ("Let me see. " + CALL, ("Let me see. ", "", ["now"])),
        ("  " + CALL + CALL, ("  ", "", ["now", "now"])),
        ('{"name": "now"}', ("", "", ["now"])),
        ('{"a": 1} is JSON', ("", '{"a": 1} is JSON', [])),
        ("So {a} and [b] < c", ("So {a} and [b] < c", "", [])),
    ],
)
def test_shows_text_at_once_and_holds_calls_back(text: str, expected: tuple[str, str, list[str]], size: int) -> None:
    assert feed(text, size=size) == expected


def test_the_beginning_of_a_tag_is_shown_when_none_comes() -> None:
    assert feed("a <tool") == ("a ", "<tool", [])


def test_one_call_where_several_are_not_wanted() -> None:
    assert feed(CALL + CALL, several=False)[2] == ["now"]


def test_a_template_with_a_place_for_tools_gets_them_and_values_as_arguments() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    prompt = conversation(request(messages=messages), native=True)
    assert prompt.tools is not None and [tool["function"]["name"] for tool in prompt.tools] == ["add", "now"]
    assert prompt.messages[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert prompt.messages[2] == {"role": "tool", "tool_call_id": "c1", "content": "2"}


def test_another_template_gets_them_as_text_in_turns() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "go"},
        {"role": "assistant", "tool_calls": [call, {**call, "id": "c2"}]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "tool", "tool_call_id": "c2", "content": "3"},
    ]
    prompt = conversation(request(messages=messages), native=False)
    assert prompt.tools is None
    assert [message["role"] for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.messages[0]["content"].startswith("Be brief.\n\nYou can call functions.")
    assert json.loads(prompt.messages[2]["content"])["tool_calls"][0] == {"name": "add", "arguments": {"a": 1}}
    assert prompt.messages[3] == {"role": "user", "content": "add returned: 2\nadd returned: 3"}


def test_guidance_follows_the_choice() -> None:
    assert guidance(request(tool_choice="none"), native=False) is None
    assert guidance(request(), native=True) is None
    free = guidance(request(), native=False)
    assert free is not None and free.kind == "lark_grammar"
    forced = guidance(request(tool_choice={"type": "function", "function": {"name": "now"}}), native=True)
    assert forced is not None and forced.kind == "json_schema"
    items = json.loads(forced.text)["properties"]["tool_calls"]["items"]["anyOf"]
    assert [item["properties"]["name"] for item in items] == [{"const": "now"}]
    one = guidance(request(tool_choice="required", parallel_tool_calls=False), native=False)
    assert one is not None and json.loads(one.text)["properties"]["tool_calls"]["maxItems"] == 1


def test_strict_is_refused_where_nothing_could_hold_the_model_to_it() -> None:
    strict = request(tools=[{"type": "function", "function": {"name": "now", "strict": True}}])
    with pytest.raises(ApiError, match=r"tools\.0\.function\.strict"):
        guidance(strict, native=True)
    assert guidance(strict, native=False) is not None
