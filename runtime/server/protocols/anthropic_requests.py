"""What Anthropic's protocol asks for (https://docs.anthropic.com/en/api/messages), checked, and as a chat.

The chat's messages are made from the blocks: text joins by lines, a call's result is a message of its own.
"""

import json
from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..parameters import Notes, Parameter, Places, hints, refused, table_of, used
from ..requests import ChatRequest, Part, checked

_CACHES = "Caches of prompts work by themselves."
_TEXT_ALONE = "the model reads text alone"
_ASKED = (
    *used(
        model="The model's name; any other is answered with a warning.",
        messages="The conversation, oldest message first.",
        system="What the system says before it, as text or text blocks.",
        tool_choice="`auto`, `any`, `none`, or a tool by name; and whether an answer may hold several calls.",
        output_config="The form of the answer.",
    ),
    Parameter("tools", "used", "Functions that the model may call.", ([],)),
    Parameter("output_format", "used", "The JSON schema that the answer must follow."),
    *hints("The model does not think apart from its answer, whatever it may.", "thinking"),
    *hints(_CACHES, "cache_control"),
    *hints("What does not fit into the context is never cut.", "context_management"),
    *hints("It says where the work is done, and by whom.", "service_tier inference_geo speed"),
    *refused("the server runs no tools itself", "mcp_servers", []),
    *refused("the server runs no tools itself", "container"),
)

ANTHROPIC: Places = MappingProxyType(
    {
        "/v1/messages": table_of(
            _ASKED,
            used(
                max_tokens="Longest answer.",
                stop_sequences="End the answer before one of these texts.",
                stream="Whether to send the answer as events.",
                temperature="0 takes the most likely token always.",
                top_p="Draw from tokens with this probability in all.",
                top_k="Draw from this many tokens at most.",
                metadata="Its `user_id` says who asks: where requests wait, the users of one client take turns.",
            ),
        ),
        "/v1/messages/count_tokens": table_of(
            _ASKED,
            hints(
                "It has no effect on the prompt.",
                "max_tokens stop_sequences stream temperature top_p top_k metadata",
            ),
        ),
        "messages[]": table_of(
            used(role="`user`, `assistant`, or `system`.", content="The text, or blocks."),
            hints("It came with an earlier answer.", "id type model stop_reason stop_sequence usage"),
        ),
        "text": table_of(
            used(type="`text`.", text="The text."),
            hints(_CACHES, "cache_control"),
            hints("It came with an earlier answer of some server.", "citations"),
        ),
        "tool_use": table_of(
            used(type="`tool_use`.", id="The call's id.", name="The tool.", input="Its arguments."),
            hints(_CACHES, "cache_control"),
            hints("Every call is the model's own.", "caller"),
        ),
        "tool_result": table_of(
            used(
                type="`tool_result`.",
                tool_use_id="The call whose result it is.",
                content="The result, as text or text blocks.",
                is_error="Whether the call failed; the model then reads `Error: ` before the result.",
            ),
            hints(_CACHES, "cache_control"),
        ),
        "thinking": table_of(
            used(
                type="`thinking` or `redacted_thinking`: of an earlier answer; left out, as it is no part of its text."
            ),
            hints("It is left out with its block.", "thinking signature data"),
        ),
        "tools[]": table_of(
            used(
                name="Its name: letters, digits, `_`, `.`, `-`.",
                description="What it does, for the model.",
                input_schema="Its parameters, as a JSON schema.",
                strict="Whether the arguments must follow the schema.",
            ),
            refused("the server runs no tools itself", "type", "custom"),
            hints(_CACHES, "cache_control"),
            hints(
                "The model is told of all tools, by their descriptions and schemas.",
                "defer_loading input_examples eager_input_streaming allowed_callers",
            ),
        ),
        "tool_choice": table_of(
            used(
                type="`auto`, `any`, `tool` or `none`.",
                name="The tool, for `tool`.",
                disable_parallel_tool_use="Whether one call at most may come, as by default for `any`.",
            )
        ),
        "output_format": table_of(
            used(type="`json_schema`.", schema="The JSON schema that the answer must follow."),
            hints("It does not reach the model.", "name"),
        ),
        "output_config": table_of(
            used(format="As output_format."),
            hints("How much work an answer is, is the model's matter.", "effort task_budget"),
        ),
    }
)
"""What becomes of each parameter, by where it stands: blocks by their type."""


class _Part(Part):
    table = ANTHROPIC


class TextBlock(_Part):
    """A block of text."""

    place = "text"
    type: Literal["text"]
    text: str


class ToolUseBlock(_Part):
    """A call of an earlier answer."""

    place = "tool_use"
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any] = Field(default={})


class ToolResultBlock(_Part):
    """What a tool returned."""

    place = "tool_result"
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] = ""
    is_error: bool = False

    @property
    def text(self) -> str:
        """The result as one text."""
        return f"Error: {_text(self.content)}" if self.is_error else _text(self.content)


class ThinkingBlock(_Part):
    """What some model thought before an earlier answer."""

    place = "thinking"
    type: Literal["thinking", "redacted_thinking"]


Block = Annotated[TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock, Field(discriminator="type")]


class AnthropicMessage(_Part):
    """A message of a conversation."""

    place = "messages[]"
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class AnthropicTool(_Part):
    """A tool that the model may call."""

    place = "tools[]"
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str = ""
    input_schema: dict[str, Any]
    strict: bool = False

    def function(self) -> dict[str, Any]:
        """Return it as a tool of a chat."""
        table = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return {"type": "function", "function": {**table, "strict": self.strict}}


class AnthropicToolChoice(_Part):
    """`tool_choice`."""

    place = "tool_choice"
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    # As chats have it.
    kinds: ClassVar[dict[str, str]] = {"auto": "auto", "any": "required", "none": "none"}

    def chosen(self) -> str | dict[str, Any]:
        """Return it as chats have it."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return self.kinds[self.type]


class OutputFormat(_Part):
    """The form of an answer."""

    place = "output_format"
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(_Part):
    """`output_config`."""

    place = "output_config"
    format: OutputFormat | None = None


class CountRequest(_Part):
    """The body of `POST /v1/messages/count_tokens`."""

    place = "/v1/messages/count_tokens"
    model: str
    messages: list[AnthropicMessage] = Field(min_length=1, max_length=4096)
    system: str | list[TextBlock] = ""
    tools: list[AnthropicTool] = Field(default=[], max_length=128)
    tool_choice: AnthropicToolChoice | None = None
    output_format: OutputFormat | None = None
    output_config: OutputConfig | None = None

    def values(self) -> dict[str, Any]:
        """Return what is asked for as the values of a chat."""
        system = [{"role": "system", "content": text}] if (text := _text(self.system)) else []
        values: dict[str, Any] = {"messages": [*system, *_messages(self.messages)]}
        if self.messages[-1].role == "assistant":  # the answer goes on from there
            values |= {"continue_final_message": True, "add_generation_prompt": False}
        if self.tools:
            values["tools"] = [tool.function() for tool in self.tools]
        if choice := self.tool_choice:
            values["tool_choice"] = choice.chosen()
            if choice.disable_parallel_tool_use is not None:
                values["parallel_tool_calls"] = not choice.disable_parallel_tool_use
        form = self.output_format or (self.output_config and self.output_config.format)
        if form:
            values["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.schema_}}
        return values

    def chat(self, notes: Notes) -> ChatRequest:
        """Return it as a chat; errors as for `requests.checked`."""
        return checked(ChatRequest, self.values(), notes)


class MessagesRequest(CountRequest):
    """The body of `POST /v1/messages`."""

    place = "/v1/messages"
    max_tokens: int = Field(ge=1)
    stop_sequences: list[str] = Field(default=[], max_length=2**16)
    stream: bool = False
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] = Field(default={})

    def values(self) -> dict[str, Any]:
        """Return what is asked for as the values of a chat."""
        named = {name: getattr(self, name) for name in ("max_tokens", "stream", "temperature", "top_p", "top_k")}
        user = self.metadata.get("user_id")
        who = {"user": user} if isinstance(user, str) else {}
        return {**super().values(), **named, **who, "stop": self.stop_sequences}


def _text(content: str | Sequence[Block]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(block.text for block in content if isinstance(block, TextBlock))


def _messages(given: Sequence[AnthropicMessage]) -> list[dict[str, Any]]:
    """Return messages as chats have them."""
    made: list[dict[str, Any]] = []
    for message in given:
        blocks = [] if isinstance(message.content, str) else message.content
        results = [block for block in blocks if isinstance(block, ToolResultBlock)]
        made += [{"role": "tool", "tool_call_id": result.tool_use_id, "content": result.text} for result in results]
        text = _text(message.content)
        calls = [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]
        if text or calls or not results:
            made.append({"role": message.role, "content": text, **({"tool_calls": calls} if calls else {})})
    return made


def _call(block: ToolUseBlock) -> dict[str, Any]:
    arguments = json.dumps(block.input, ensure_ascii=False)
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}
