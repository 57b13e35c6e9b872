"""What `POST /v1/responses` asks for (https://platform.openai.com/docs/api-reference/responses), and as a chat."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ..parameters import Notes, Parameter, Places, hints, option_parameters, refused, same, table_of, used
from ..requests import MOST_TOP_LOGPROBS, ChatRequest, Numbers, Part, StreamOptions, UserName, checked

LOGPROBS = "message.output_text.logprobs"
_ID_LENGTH = 128
_NAME = r"^[A-Za-z0-9_.-]{1,64}$"
_EARLIER = "It came with an earlier response."
_ASKED = (
    *used(
        model="The model's name; any other is answered with a warning.",
        input="A text, or the items of a conversation.",
        instructions="What the system says before it; it is not carried over from an earlier response.",
        tool_choice="`none`, `auto`, `required`, or a function by name.",
        parallel_tool_calls="Whether a response may hold several calls: by default, unless one has to come.",
        text="The form of the answer.",
        previous_response_id="The response that this one goes on from, as long as the server keeps it.",
    ),
    Parameter("tools", "used", "Functions that the model may call.", ([],)),
    *hints("The model does not reason apart from its answer.", "reasoning"),
    *hints("What does not fit into the context is never cut.", "truncation context_management"),
    *refused("the server keeps responses, and no conversations; use previous_response_id", "conversation"),
    *refused("the server keeps no prompts; use instructions and input", "prompt"),
)

RESPONSES: Places = MappingProxyType(
    {
        "/v1/responses": table_of(
            _ASKED,
            option_parameters(),
            same("max_tokens", "max_output_tokens"),
            used(
                stream="Whether to send the response as events.",
                stream_options="What events hold besides.",
                store="Whether the server keeps the response for a while, as it does unless this is false.",
                metadata="Returned with the response.",
                include=f"`{LOGPROBS}` gives the log probability of each token; the rest has no effect.",
                top_logprobs="How many of the most likely tokens to give at each place, 0 to 20.",
                user="Who asks: where requests wait, the users of one client take turns.",
                safety_identifier="Who asks, where `user` is not given.",
            ),
            hints("It says who asks.", "client_metadata"),
            hints("Caches of prompts work by themselves.", "prompt_cache_key prompt_cache_retention"),
            hints("There is one class of service.", "service_tier"),
            hints("It bounds tools that the server runs, and there are none.", "max_tool_calls"),
            refused("a response is made while the client waits", "background", False),
        ),
        "/v1/responses/input_tokens": table_of(_ASKED, hints("It has no effect on the prompt.", "max_output_tokens")),
        "message": table_of(
            used(role="`user`, `assistant`, `system`, or `developer`.", content="The text, or parts."),
            hints(_EARLIER, "type id status phase"),
        ),
        "content[]": table_of(
            used(type="`input_text`, `output_text`, or `text`.", text="The text."),
            hints(_EARLIER, "annotations logprobs"),
        ),
        "function_call": table_of(
            used(type="`function_call`.", call_id="The call's id.", name="The function.", arguments="Its arguments."),
            used(namespace="The namespace of the function."),
            hints(_EARLIER, "id status"),
        ),
        "function_call_output": table_of(
            used(
                type="`function_call_output`.",
                call_id="The call whose result it is.",
                output="The result, as text or parts.",
            ),
            hints(_EARLIER, "id status"),
        ),
        "reasoning": table_of(
            used(type="`reasoning`: of an earlier response; left out, as it is no part of its text."),
            hints("It is left out with its item.", "id summary content encrypted_content status"),
        ),
        "tools[]": table_of(
            used(
                type="`function`.",
                name="Its name: letters, digits, `_`, `.`, `-`.",
                description="What it does, for the model.",
                parameters="Its parameters, as a JSON schema.",
                strict="Whether the arguments must follow the schema.",
            ),
            hints("The model is told of all tools.", "defer_loading"),
        ),
        "namespace": table_of(
            used(
                type="`namespace`: several functions; a call says which namespace it is of.",
                name="Its name: letters, digits, `_`, `.`, `-`.",
                tools="Its functions, as in tools[].",
            ),
            hints("The model reads what each of its functions does.", "description"),
        ),
        "tool_choice": table_of(used(type="`function`.", name="Which one.")),
        "text": table_of(
            used(format="`text`, `json_object`, or `json_schema` with a schema."),
            hints("How long an answer is, is the model's matter.", "verbosity"),
        ),
        "text.format": table_of(
            used(type="Which kind.", schema="The JSON schema that the answer must follow.", name="Returned as it is."),
            hints(
                "An answer follows the schema always; the description does not reach the model.", "strict description"
            ),
        ),
    }
)
"""What becomes of each parameter, by where it stands: items by their type."""


class _Part(Part):
    table = RESPONSES


class ContentPart(_Part):
    """A part of a text."""

    place = "content[]"
    type: Literal["input_text", "output_text", "text"]
    text: str


Content = str | list[ContentPart]


class MessageItem(_Part):
    """A message of a conversation."""

    place = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class CallItem(_Part):
    """A call of an earlier response."""

    place = "function_call"
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    namespace: str | None = None


class OutputItem(_Part):
    """What a function returned."""

    place = "function_call_output"
    type: Literal["function_call_output"]
    call_id: str
    output: Content


class ReasoningItem(_Part):
    """What some model thought before an earlier answer."""

    place = "reasoning"
    type: Literal["reasoning"]


def _kind(item: Any) -> Any:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    return kind if isinstance(kind, str) else "message"


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


class FunctionTool(_Part):
    """A function that the model may call."""

    place = "tools[]"
    type: Literal["function"]
    name: str = Field(pattern=_NAME)
    description: str = ""
    parameters: dict[str, Any] = Field(default={})
    strict: bool = False


class NamespaceTool(_Part):
    """Functions that belong together."""

    place = "namespace"
    type: Literal["namespace"]
    name: str = Field(pattern=_NAME)
    tools: list[FunctionTool] = Field(max_length=128)


@dataclass(frozen=True)
class Offered:
    """A function as the model is told of it."""

    name: str
    namespace: str | None
    tool: FunctionTool


class FunctionChoice(_Part):
    """`tool_choice` for one function."""

    place = "tool_choice"
    type: Literal["function"]
    name: str


class ResponseTextFormat(_Part):
    """`text.format`."""

    place = "text.format"
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _check_schema(self) -> "ResponseTextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError("text.format has a schema where its type is json_schema, and only there")
        return self

    def chat(self) -> dict[str, Any]:
        """Return it as a chat's `response_format`."""
        inner = {} if self.schema_ is None else {"json_schema": {"schema": self.schema_}}
        return {"type": self.type, **inner}


class Text(_Part):
    """`text`."""

    place = "text"
    format: ResponseTextFormat = ResponseTextFormat(type="text")


class _Asked(_Part):
    """What the prompt is made of."""

    model: str | None = None
    input: str | list[Item] = Field(default=[], max_length=2**24)
    instructions: str = ""
    tools: list[Annotated[FunctionTool | NamespaceTool, Field(discriminator="type")]] = Field(
        default=[], max_length=128
    )
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice = "auto"
    parallel_tool_calls: bool | None = None
    text: Text = Text()
    previous_response_id: str | None = Field(default=None, max_length=_ID_LENGTH)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The input as messages of a chat."""
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        return _messages(self.input, {(entry.namespace, entry.tool.name): entry.name for entry in self.offered})

    @property
    def offered(self) -> list[Offered]:
        """The functions: those of a namespace by their own names, and by both where another one has that name."""
        found: list[tuple[str | None, FunctionTool]] = []
        for tool in self.tools:
            if isinstance(tool, NamespaceTool):
                found += [(tool.name, inner) for inner in tool.tools]
            else:
                found.append((None, tool))
        count = Counter(tool.name for _, tool in found)
        return [
            Offered(f"{space}.{tool.name}" if space and count[tool.name] > 1 else tool.name, space, tool)
            for space, tool in found
        ]

    def values(self, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return what is asked for as the values of a chat, after earlier messages."""
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        choice: Any = self.tool_choice
        if isinstance(choice, FunctionChoice):
            choice = {"type": "function", "function": {"name": choice.name}}
        tools = [
            {"type": "function", "function": {**entry.tool.model_dump(exclude={"type"}), "name": entry.name}}
            for entry in self.offered
        ]
        return {
            "messages": joined([*system, *before, *self.messages]),
            "tools": tools,
            "tool_choice": choice if tools or choice != "auto" else None,
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": self.text.format.chat(),
        }

    def chat(self, before: Sequence[dict[str, Any]], notes: Notes) -> ChatRequest:
        """Return it as a chat; errors as for `requests.checked`."""
        return checked(ChatRequest, self.values(before), notes)


class TokensRequest(_Asked):
    """The body of `POST /v1/responses/input_tokens`."""

    place = "/v1/responses/input_tokens"


class ResponseRequest(_Asked, Numbers):
    """The body of `POST /v1/responses`."""

    place = "/v1/responses"
    stop: str | list[str] = Field(default=[], max_length=2**16)
    stream: bool = False
    stream_options: StreamOptions | None = None
    store: bool = True
    metadata: dict[str, str] = Field(default={})
    include: list[str] = Field(default=[], max_length=64)
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP_LOGPROBS)
    user: UserName = ""
    safety_identifier: UserName = ""

    @property
    def logprobs(self) -> bool:
        """Whether log probabilities are asked for."""
        return LOGPROBS in self.include

    def values(self, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return what is asked for as the values of a chat, after earlier messages."""
        asked = {"stream": self.stream, "stop": self.stop, "logprobs": self.logprobs}
        asked |= {"user": self.user, "safety_identifier": self.safety_identifier}
        top = {"top_logprobs": self.top_logprobs} if self.logprobs else {}
        return {**super().values(before), **self.given(), **asked, **top}


def joined(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages in which an answer's text and its calls are one message, as chats have them."""
    made: list[dict[str, Any]] = []
    for message in messages:
        last = made[-1] if made else {}
        if message.get("tool_calls") and last.get("role") == "assistant":
            made[-1] = {**last, "tool_calls": [*last.get("tool_calls", []), *message["tool_calls"]]}
        else:
            made.append(message)
    return made


def _messages(items: Sequence[Item], names: Mapping[tuple[str | None, str], str]) -> list[dict[str, Any]]:
    """Return items as messages of a chat; `names` are those of functions, by namespace and by their own."""
    made: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, MessageItem):
            made.append({"role": item.role, "content": _text(item.content)})
        elif isinstance(item, CallItem):
            name = names.get((item.namespace, item.name), item.name)
            made.append(called(item.call_id, name, item.arguments))
        elif isinstance(item, OutputItem):
            made.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
    return made


def called(number: str, name: str, arguments: str) -> dict[str, Any]:
    """Return the message of one call."""
    call = {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
