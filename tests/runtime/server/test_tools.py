"""Telling models of tools, and making them call."""

import json
from typing import Any

import pytest
from phi3_onnx.runtime.server.errors import ApiError
from phi3_onnx.runtime.server.requests import ChatRequest
from phi3_onnx.runtime.server.tools import conversation, guidance, most_calls
from phi3_onnx.runtime.text.template import ChatTemplate, Dialect

TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}},
    {"type": "function", "function": {"name": "now"}},
]


def request(**values: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": "go"}], "tools": TOOLS, **values})


def test_a_template_with_a_place_for_tools_gets_them_and_values_as_arguments() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    prompt = conversation(request(messages=messages), "template")
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
    prompt = conversation(request(messages=messages), "convention")
    assert prompt.tools is None
    assert [message["role"] for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.messages[0]["content"].startswith("Be brief.\n\nYou can call functions.")
    assert json.loads(prompt.messages[2]["content"])["tool_calls"][0] == {"name": "add", "arguments": {"a": 1}}
    assert prompt.messages[3] == {"role": "user", "content": "add returned: 2\nadd returned: 3"}


# Phi-4-mini-instruct's own template, but for line breaks.
PHI4 = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not "
    "none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + "
    "'<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def test_phi4_is_told_as_it_was_trained() -> None:
    template = ChatTemplate(PHI4, {})
    assert template.dialect == "phi4"
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    tools = [{"type": "function", "function": {"name": "add", "description": "Adds."}}]
    prompt = conversation(request(messages=messages, tools=tools), "phi4")
    assert prompt.tools is None
    assert template.render(prompt.messages) == (
        '<|system|>You are a helpful assistant with some tools.<|tool|>[{"name": "add", "description": "Adds.", '
        '"parameters": {}}]<|/tool|><|end|><|user|>go<|end|><|assistant|><|tool_call|>[{"name": "add", "arguments": '
        '{"a": 1}}]<|/tool_call|><|end|><|tool_response|>2<|end|><|assistant|>'
    )
    plain = conversation(request(messages=messages[:1], tools=[]), "phi4")
    assert template.render(plain.messages) == "<|user|>go<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("source", "dialect"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "convention"),
        ("{% if tools %}{{ tools | tojson }}{% endif %}", "template"),
        ("{%- if tools is not none %}<tool_call>{% endif %}", "template"),
        ("{{ message.tools }}", "phi4"),
    ],
)
def test_the_dialect_is_the_template_s(source: str, dialect: Dialect) -> None:
    assert ChatTemplate(source, {}).dialect == dialect


def test_guidance_follows_the_choice() -> None:
    assert guidance(request(tool_choice="none"), "convention", 8) is None
    assert guidance(request(), "template", 8) is None
    free = guidance(request(), "convention", 8)
    assert free is not None and free.kind == "lark_grammar" and '"maxItems": 8' in free.text
    named = request(tool_choice={"type": "function", "function": {"name": "now"}})
    forced = guidance(named, "template", 8)
    assert forced is not None and forced.kind == "json_schema"
    array = json.loads(forced.text)["properties"]["tool_calls"]
    assert [item["properties"]["name"] for item in array["items"]["anyOf"]] == [{"const": "now"}]
    assert (array["minItems"], array["maxItems"]) == (1, 1)
    own = guidance(named, "phi4", 8)
    assert own is not None and json.loads(own.text) == array


@pytest.mark.parametrize(
    ("values", "most"),
    [
        ({}, 5),
        ({"tool_choice": "required"}, 1),
        ({"tool_choice": "required", "parallel_tool_calls": True}, 5),
        ({"tool_choice": "required", "parallel_tool_calls": False}, 1),
        ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, 1),
    ],
)
def test_calls_are_bounded(values: dict[str, Any], most: int) -> None:
    assert most_calls(request(**values), 5) == most
    form = guidance(request(**values), "convention", 5)
    assert form is not None and f'"maxItems": {most}' in form.text


def test_strict_is_refused_where_nothing_could_hold_the_model_to_it() -> None:
    strict = request(tools=[{"type": "function", "function": {"name": "now", "strict": True}}])
    with pytest.raises(ApiError, match=r"tools\.0\.function\.strict"):
        guidance(strict, "template", 8)
    assert guidance(strict, "convention", 8) is not None
