"""How a chat template has its model told of tools: in a dialect that the template knows, or in words of ours."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .requests import AssistantMessage, ChatMessage, Tool, ToolMessage

_CONVENTION = """You can call functions. Each line describes one:
{functions}
To call functions, answer with nothing but JSON of this form:
{{"tool_calls": [{{"name": "<the function's name>", "arguments": {{<its parameters>}}}}]}}
What they return comes with the next message. Where no call is needed, answer in plain text."""
# The words of Phi-4-mini's model card.
_PHI4_SYSTEM = "You are a helpful assistant with some tools."


def in_convention(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return messages in which the system's tells of the tools, and calls and their results are plain text."""
    names: dict[str, str] = {}
    table: list[dict[str, Any]] = []
    for message in messages:
        text = message.text
        if isinstance(message, AssistantMessage) and message.tool_calls:
            names |= {call.id: call.function.name for call in message.tool_calls}
            text += json.dumps({"tool_calls": _calls(message)}, ensure_ascii=False)
        if isinstance(message, ToolMessage):
            text = f"{names.get(message.tool_call_id, 'The function')} returned: {text}"
            if table and "returned" in table[-1]:  # several in a row are one message: templates want turns
                table[-1]["returned"].append(text)
                continue
            table.append({"role": "user", "content": "", "returned": [text]})
            continue
        table.append(_entry(message, text))
    for entry in table:
        if returned := entry.pop("returned", None):
            entry["content"] = "\n".join(returned)
    if tools:
        functions = "\n".join(json.dumps(function, ensure_ascii=False) for function in _functions(tools))
        system = _system(table)
        system["content"] = "\n\n".join(filter(None, (system["content"], _CONVENTION.format(functions=functions))))
    return table


def in_phi4(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return messages as Phi-4-mini was trained on them; its template marks tools, the calls are marked here."""
    table: list[dict[str, Any]] = []
    for message in messages:
        entry = _entry(message, message.text)
        if isinstance(message, AssistantMessage) and message.tool_calls:
            calls = json.dumps(_calls(message), ensure_ascii=False)
            entry["content"] += f"<|tool_call|>{calls}<|/tool_call|>"
        if isinstance(message, ToolMessage):
            entry["role"] = "tool_response"  # its tokenizer has a mark of this name, and its template one for any role
        table.append(entry)
    if tools:
        system = _system(table)
        system["content"] = system["content"] or _PHI4_SYSTEM
        system["tools"] = json.dumps(_functions(tools), ensure_ascii=False)
    return table


def in_template(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages for a template that knows calls and their results."""
    table: list[dict[str, Any]] = []
    for message in messages:
        entry = _entry(message, message.text)
        if isinstance(message, ToolMessage):
            entry["tool_call_id"] = message.tool_call_id
        if isinstance(message, AssistantMessage) and message.tool_calls:
            entry["tool_calls"] = [
                {"id": call.id, "type": "function", "function": function}
                for call, function in zip(message.tool_calls, _calls(message), strict=True)
            ]
        table.append(entry)
    return table


def as_tables(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return tools as templates take them."""
    return [tool.model_dump(exclude={"function": {"strict"}}) for tool in tools]


def _functions(tools: Sequence[Tool]) -> list[Mapping[str, Any]]:
    return [tool["function"] for tool in as_tables(tools)]


def _calls(message: AssistantMessage) -> list[dict[str, Any]]:
    # Templates write arguments out with `tojson`, so they get them as values, as transformers has it.
    return [{"name": call.function.name, "arguments": _loaded(call.function.arguments)} for call in message.tool_calls]


def _entry(message: ChatMessage, text: str) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    entry: dict[str, Any] = {"role": role, "content": text}
    return entry if message.name is None else {**entry, "name": message.name}


def _system(table: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the system message of a conversation, which gets one where it has none."""
    if not table or table[0]["role"] != "system":
        table.insert(0, {"role": "system", "content": ""})
    return table[0]


def _loaded(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
