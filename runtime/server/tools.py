"""Tool calls: how a model is told of them, made to write them, and how they are read from its answer.

A chat template with a place for tools tells the model in the words it was trained on; other models get a convention in
their system message. A call that has to come is written under guidance, in the convention's form, for either kind.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..decoding.engine import Guidance
from .errors import ApiError
from .messages import Conversation
from .requests import AssistantMessage, ChatMessage, ChatRequest, JsonSchemaFormat, Tool, ToolChoice, ToolMessage

_CONVENTION = """You can call functions. Each line describes one:
{functions}
To call functions, answer with nothing but JSON of this form:
{{"tool_calls": [{{"name": "<the function's name>", "arguments": {{<its parameters>}}}}]}}
What they return comes with the next message. Where no call is needed, answer in plain text."""
_OPENINGS = ("<tool_call>", "<|tool_call|>", "{", "[")
_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Call:
    """A call that the model wrote."""

    name: str
    arguments: str
    """JSON."""
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")

    def as_json(self) -> dict[str, Any]:
        """Return it as the protocol has it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def conversation(request: ChatRequest, native: bool) -> Conversation:
    """Return the prompt of a chat request.

    Args:
        request: the request.
        native: whether the chat template has a place for tools.

    """
    tools = [tool.model_dump(exclude={"function": {"strict"}}) for tool in request.tools] if request.calls_tools else []
    if native:
        messages = [_native(message) for message in request.messages]
        return Conversation(tuple(messages), tuple(tools) or None)
    messages = _conventional(request.messages)
    if tools:
        functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        _add_to_system(messages, _CONVENTION.format(functions=functions))
    return Conversation(tuple(messages))


def guidance(request: ChatRequest, native: bool) -> Guidance | None:
    """Return the form that the answer must have; None for free text.

    With tools of the convention, the answer is either text or calls as they should be; with a template's own tools it
    is free, since how calls look there is the model's matter, unless one has to come.
    """
    if isinstance(request.response_format, JsonSchemaFormat):
        return Guidance("json_schema", json.dumps(request.response_format.json_schema.schema_))
    if request.response_format.type == "json_object":
        return Guidance("json_schema", '{"type": "object"}')
    if not request.calls_tools:
        return None
    if request.tool_choice in (None, "auto"):
        if native:
            _refuse_strict(request.tools)
            return None
        schema = json.dumps({**_calls_schema(request.tools, request.parallel_tool_calls), "x-guidance": _COMPACT})
        return Guidance("lark_grammar", f"start: calls | TEXT\ncalls: %json {schema}\nTEXT: /[^{{\\s](?s:.)*/\n")
    tools: Sequence[Tool] = request.tools
    if isinstance(request.tool_choice, ToolChoice):
        tools = [tool for tool in tools if tool.function.name == request.tool_choice.function.name]
    return Guidance("json_schema", json.dumps(_calls_schema(tools, request.parallel_tool_calls)))


def _refuse_strict(tools: Sequence[Tool]) -> None:
    for number, tool in enumerate(tools):
        if tool.function.strict:
            param = f"tools.{number}.function.strict"
            raise ApiError(
                400,
                f"{param}: this model writes calls in a form of its own, which cannot be held to a schema; "
                'leave strict out, or force a call (tool_choice: "required")',
                param=param,
                code="unsupported_parameter",
            )


def _calls_schema(tools: Sequence[Tool], several: bool) -> dict[str, Any]:
    calls = [
        # Without this, a small model keeps inventing arguments until its tokens run out.
        _object(
            {
                "name": {"const": tool.function.name},
                "arguments": {"type": "object", "additionalProperties": False, **tool.function.parameters},
            }
        )
        for tool in tools
    ]
    most = {} if several else {"maxItems": 1}
    return _object({"tool_calls": {"type": "array", "minItems": 1, **most, "items": {"anyOf": calls}}})


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _native(message: ChatMessage) -> dict[str, Any]:
    table: dict[str, Any] = {"role": _role(message), "content": message.text}
    if message.name is not None:
        table["name"] = message.name
    if isinstance(message, ToolMessage):
        table["tool_call_id"] = message.tool_call_id
    if isinstance(message, AssistantMessage) and message.tool_calls:
        # Templates write arguments out with `tojson`, so they get them as values, as transformers has it.
        table["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _loaded(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return table


def _conventional(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    names: dict[str, str] = {}
    table: list[dict[str, Any]] = []
    for message in messages:
        text = message.text
        if isinstance(message, AssistantMessage) and message.tool_calls:
            names |= {call.id: call.function.name for call in message.tool_calls}
            calls = [
                {"name": call.function.name, "arguments": _loaded(call.function.arguments)}
                for call in message.tool_calls
            ]
            text += json.dumps({"tool_calls": calls}, ensure_ascii=False)
        if isinstance(message, ToolMessage):
            text = f"{names.get(message.tool_call_id, 'The function')} returned: {text}"
            if table and table[-1].get("returned"):  # several in a row are one message: templates want turns
                table[-1]["content"] += f"\n{text}"
                continue
            table.append({"role": "user", "content": text, "returned": True})
            continue
        entry: dict[str, Any] = {"role": _role(message), "content": text}
        table.append(entry if message.name is None else {**entry, "name": message.name})
    for entry in table:
        entry.pop("returned", None)
    return table


def _role(message: ChatMessage) -> str:
    return "system" if message.role == "developer" else message.role


def _add_to_system(messages: list[dict[str, Any]], text: str) -> None:
    if messages[0]["role"] == "system":
        messages[0]["content"] += f"\n\n{text}"
    else:
        messages.insert(0, {"role": "system", "content": text})


def _loaded(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


class CallFilter:
    """Passes an answer's text on, and holds back what may be tool calls, to be read at its end."""

    def __init__(self, tools: Sequence[Tool], several: bool = True) -> None:
        """Begin an answer.

        Args:
            tools: those that may be called.
            several: whether more than one call is wanted.

        """
        self._names = frozenset(tool.function.name for tool in tools)
        self._several = several
        self._held = ""
        self._inside = False
        self._shown = False

    def push(self, text: str) -> str:
        """Take the next piece of text and return what can be shown now."""
        self._held += text
        if self._inside:
            return ""
        # JSON counts at the very beginning only; a tag anywhere.
        openings = _OPENINGS[:2] if self._shown else _OPENINGS
        start = len(self._held) - len(self._held.lstrip()) if not self._shown else 0
        found = [position for opening in openings[:2] if (position := self._held.find(opening)) >= 0]
        if not self._shown and self._held.startswith(openings[2:], start):
            found.append(start)
        if found:
            self._inside = True
            return self._show(min(found))
        if not self._shown and start == len(self._held):
            return ""
        return self._show(len(self._held) - _overlap(self._held, openings[:2]))

    def finish(self) -> tuple[str, list[Call]]:
        """Return the calls that the answer holds, and what is left of its text: nothing, where there are calls."""
        held, self._held = self._held, ""
        calls = read_calls(held, self._names) if self._inside else []
        return ("", calls if self._several else calls[:1]) if calls else (held, [])

    def _show(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        self._shown = self._shown or bool(shown)
        return shown


def read_calls(text: str, names: frozenset[str]) -> list[Call]:
    """Return the calls in an answer, in any of the forms that models are trained on; empty where it holds none.

    They are: our convention; `<tool_call>{...}</tool_call>` for each call (Hermes, Qwen); a JSON list after
    `<|tool_call|>` (Phi-4-mini) or alone; one JSON object with `name` and `arguments` or `parameters` (Llama 3).
    """
    text = text.strip()
    if text.startswith("<|tool_call|>"):
        text = text.removeprefix("<|tool_call|>").removesuffix("<|/tool_call|>")
    bodies = _TAGGED.findall(text) if "<tool_call>" in text else [text]
    calls: list[Call] = []
    for body in bodies:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return []
        if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
            value = value["tool_calls"]
        for entry in value if isinstance(value, list) else [value]:
            call = _call(entry, names)
            if call is None:
                return []
            calls.append(call)
    return calls


def _call(entry: Any, names: frozenset[str]) -> Call | None:
    if not isinstance(entry, dict) or entry.get("name") not in names:
        return None
    arguments = entry.get("arguments", entry.get("parameters", {}))
    if isinstance(arguments, str):  # some write them as JSON within JSON
        return Call(entry["name"], arguments) if isinstance(_loaded(arguments), dict) else None
    return Call(entry["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _overlap(text: str, openings: Sequence[str]) -> int:
    """Return how much of the end of a text may be the beginning of an opening."""
    return max(
        (length for opening in openings for length in range(1, len(opening)) if text.endswith(opening[:length])),
        default=0,
    )
