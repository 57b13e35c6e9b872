"""Tool calls: how a model is told of them, and made to write them.

A chat template with a place for tools tells the model in the words it was trained on; other models get a convention in
their system message (`dialects`). A call that has to come is written under guidance. `calls` reads what comes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..decoding.engine import Guidance
from ..decoding.schemas import closed
from ..text.template import Dialect
from .dialects import as_tables, in_convention, in_phi4, in_template
from .errors import ApiError
from .forms import guidance_of
from .messages import Conversation
from .requests import ChatRequest, Tool, ToolChoice

_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def conversation(request: ChatRequest, dialect: Dialect) -> Conversation:
    """Return the prompt of a chat request, in the dialect of the chat template."""
    tools = request.tools if request.calls_tools else []
    tables = None
    if dialect == "template":
        messages, tables = in_template(request.messages), tuple(as_tables(tools)) or None
    else:
        messages = (in_phi4 if dialect == "phi4" else in_convention)(request.messages, tools)
    return Conversation(tuple(messages), tables, request.chat_template_kwargs, request.opens, request.continues)


def most_calls(request: ChatRequest, limit: int) -> int:
    """Return how many calls an answer may hold: the limit, or 1 where no more are wanted.

    Where a call has to come, one is wanted unless the request says otherwise: made to call, a weak model goes on with
    the same call as long as it may.
    """
    several = request.parallel_tool_calls
    if several is None:
        several = request.tool_choice != "required"
    return limit if several and not isinstance(request.tool_choice, ToolChoice) else 1


def guidance(request: ChatRequest, dialect: Dialect, limit: int) -> Guidance | None:
    """Return the form that the answer must have; None for free text.

    With tools of the convention, the answer is either text or calls as they should be; with a template's own tools it
    is free, since how calls look there is the model's matter, unless one has to come.

    Args:
        request: the request.
        dialect: of the chat template.
        limit: calls of an answer at most, where the request allows several. A weak model repeats a call for ever.

    Raises:
        ApiError: a function is to be followed strictly (`strict`), and the dialect leaves calls free.

    """
    if not request.calls_tools:
        return guidance_of(request)
    most = most_calls(request, limit)
    if request.tool_choice in (None, "auto"):
        if dialect != "convention":
            _refuse_strict(request.tools)
            return None
        schema = json.dumps({**_convention_schema(request.tools, most), "x-guidance": _COMPACT})
        return Guidance("lark_grammar", f"start: calls | TEXT\ncalls: %json {schema}\nTEXT: /[^{{\\s](?s:.)*/\n")
    tools: Sequence[Tool] = request.tools
    if isinstance(request.tool_choice, ToolChoice):
        tools = [tool for tool in tools if tool.function.name == request.tool_choice.function.name]
    form = _calls_schema if dialect == "phi4" else _convention_schema
    return Guidance("json_schema", json.dumps(form(tools, most)))


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


def _convention_schema(tools: Sequence[Tool], most: int) -> dict[str, Any]:
    return _object({"tool_calls": _calls_schema(tools, most)})


def _calls_schema(tools: Sequence[Tool], most: int) -> dict[str, Any]:
    calls = [
        # Without this, a small model keeps inventing arguments until its tokens run out.
        _object(
            {
                "name": {"const": tool.function.name},
                "arguments": {"type": "object", "additionalProperties": False, **closed(tool.function.parameters)},
            }
        )
        for tool in tools
    ]
    return {"type": "array", "minItems": 1, "maxItems": most, "items": {"anyOf": calls}}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
