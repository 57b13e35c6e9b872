"""The requests that are understood, checked to the last parameter; `parameters` says what becomes of each."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema, from_json

from ...configs.options import OPTIONS, Option
from .bodies import check_parts
from .errors import ApiError
from .parameters import PLACES, Notes, Places, path_of, told

_R = TypeVar("_R", bound=BaseModel)

MOST_CHOICES = 16
MOST_PROMPTS = 64
MOST_TOP_LOGPROBS = 20
MOST_CALLS = 128
"""Tool calls of one message: each result looks through those that came before it."""
# Below it, dividing logits by the temperature overflows; the most likely token has all of the probability long before.
COLDEST = 1e-4


_UNSUPPORTED = "unsupported_parameter"


_FAIL_FAST = {
    kind: "fail_fast" in table.__annotations__  # of mappings, newer versions alone know it
    for kind, table in (("list", core_schema.ListSchema), ("dict", core_schema.DictSchema))
}


def _fail_fast(schema: Any) -> None:
    """Let every list and mapping of a schema end at its first wrong entry."""
    if isinstance(schema, list | tuple):
        for entry in schema:
            _fail_fast(entry)
    elif isinstance(schema, dict):
        kind = schema.get("type")  # or a field of this name
        if isinstance(kind, str) and _FAIL_FAST.get(kind):
            schema["fail_fast"] = True
        for entry in schema.values():
            _fail_fast(entry)


class Part(BaseModel):
    """A part of a request: converts nothing; null stands for a parameter that was left out."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)
    table: ClassVar[Places] = PLACES
    """The parameters of its protocol."""
    place: ClassVar[str]
    """Its place in that table."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Return its schema, in which a list ends at its first wrong entry: a million errors take gigabytes."""
        schema = handler(source)
        _fail_fast(schema)
        return schema

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return its schema, with what the table says of each parameter."""
        reference = handler(core_schema)
        if place := getattr(cls, "place", None):
            told(handler.resolve_ref_schema(reference), cls.table[place])
        return reference

    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, dict):
            return values
        notes = info.context if isinstance(info.context, Notes) else Notes()
        wanted = {name: value for name, value in values.items() if value is not None}
        wanted = {name: value for name, value in wanted.items() if cls._wanted(name, value, notes)}
        named: dict[str, Any] = {}
        for name, value in wanted.items():
            own = cls.table[cls.place][name].same_as or name
            if own in named and named[own] != value:
                raise ValueError(f"{own} is given under two names, with two values; give one of them")
            named[own] = value
        return named

    @classmethod
    def _wanted(cls, name: str, value: Any, notes: Notes) -> bool:
        parameter = cls.table[cls.place].get(name)
        if parameter is None:
            if notes.strict:
                raise PydanticCustomError(_UNSUPPORTED, "unknown parameter", {"name": name})
            notes.unknown[path_of(cls.place, name)] = None
        elif parameter.kind == "hint":
            notes.hints.add(path_of(cls.place, name))
        elif not parameter.asks_for_nothing(value):
            if parameter.kind == "used":
                return True
            raise PydanticCustomError(_UNSUPPORTED, "{note}", {"name": name, "note": parameter.note})
        return False


class StreamOptions(Part):
    """`stream_options`."""

    place = "stream_options"
    include_usage: bool = False
    continuous_usage_stats: bool = False


_TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


def _field(option: Option) -> Any:
    """Return the type of an option's parameter, with its range and None as default."""
    bounds = option.server or option.range
    number = float if option.kind is dict else option.kind
    ends = {"gt" if bounds.open else "ge": bounds.least, "le": bounds.most}
    limits: dict[str, Any] = {name: number(limit) for name, limit in ends.items() if math.isfinite(limit)}
    if option.kind is dict:
        return dict[_TokenId, Annotated[float, Field(**limits)]] | None, Field(default=None)
    return option.kind | None, Field(default=None, **limits)


_NUMBERS = {name: option for name, option in OPTIONS.items() if option.kind is not tuple}
_Numbers = create_model("_Numbers", __base__=Part, **{name: _field(option) for name, option in _NUMBERS.items()})


class Numbers(_Numbers):
    """The options of an answer that are not texts."""

    def given(self) -> dict[str, Any]:
        """Return those that were given, by their own names."""
        return {name: value for name in _NUMBERS if (value := getattr(self, name)) is not None}


# What the protocol has another range for than the runtime.
_CONVERTED: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "temperature": lambda value: value * (value >= COLDEST),
        "seed": lambda value: value % 2**63,
        "top_k": lambda value: max(0, value),
    }
)


class TextFormat(Part):
    """`response_format` for any text."""

    place = "response_format"
    type: Literal["text"]


class JsonObjectFormat(Part):
    """`response_format` for a JSON object, of a schema where there is one."""

    place = "response_format"
    type: Literal["json_object"]
    schema_: dict[str, Any] = Field(default={}, alias="schema")


class JsonSchema(Part):
    """A schema, under a name that has no effect."""

    place = "response_format.json_schema"
    schema_: dict[str, Any] = Field(alias="schema")


class JsonSchemaFormat(Part):
    """`response_format` for JSON of a schema."""

    place = "response_format"
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
Schema = dict[str, Any] | str
"""A JSON schema, or one as JSON in a text."""


class StructuredOutputs(Part):
    """`structured_outputs`: one form of an answer."""

    place = "structured_outputs"
    json_: Schema | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


MOST_STOPS = 64
LONGEST_STOP = 256
_LONGEST_ASKER = 256
"""Stop texts of a request, and characters of each: all are looked for after each token, while other answers wait."""
_STOP = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}


UserName = Any
"""What a request calls its user: a text as a rule, and whatever else some clients send."""


class _Generation(Numbers):
    """What both kinds of completion have in common."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Annotated[
        str | list[str], WithJsonSchema({"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MOST_STOPS}]})
    ] = Field(default=[], max_length=2**16)
    n: int = Field(default=1, ge=1, le=MOST_CHOICES)
    user: UserName = ""
    safety_identifier: UserName = ""
    response_format: ResponseFormat = TextFormat(type="text")
    json_schema: Schema | None = None
    regex: str | None = None
    grammar: str | None = None
    guided_choice: list[str] | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _check_stream(self) -> "_Generation":
        if self.stream_options and not self.stream:
            raise ValueError("stream_options is for stream: true only")
        if not all(self.stops):
            raise ValueError("stop must not hold an empty text")
        if len(self.stops) > MOST_STOPS or max(map(len, self.stops), default=0) > LONGEST_STOP:
            raise ValueError(f"stop may hold {MOST_STOPS} texts of {LONGEST_STOP} characters at most")
        if len(self.forms) > 1:
            raise ValueError(f"an answer has one form at most, got {', '.join(self.forms)}; give one of them")
        return self

    @property
    def forms(self) -> dict[str, tuple[str, Any]]:
        """The forms that the answer must have, by what asks for each: which kind, and what it is made of."""
        found: dict[str, tuple[str, Any]] = {}
        if isinstance(self.response_format, JsonSchemaFormat):
            found["response_format"] = "schema", self.response_format.json_schema.schema_
        elif isinstance(self.response_format, JsonObjectFormat):
            found["response_format"] = "schema", {"type": "object", **self.response_format.schema_}
        named = {"json_schema": "schema", "regex": "regex", "grammar": "grammar", "guided_choice": "choice"}
        found |= {name: (kind, value) for name, kind in named.items() if (value := getattr(self, name)) is not None}
        if inner := self.structured_outputs:
            named = {"json_": "schema", "regex": "regex", "grammar": "grammar", "choice": "choice"}
            given = {name: (kind, value) for name, kind in named.items() if (value := getattr(inner, name)) is not None}
            if inner.json_object:
                given["json_object"] = "schema", {"type": "object"}
            found |= {f"structured_outputs.{name.strip('_')}": form for name, form in given.items()}
        return found

    @property
    def asker(self) -> str:
        """Who asks; empty where it is not said."""
        user = self.user or self.safety_identifier
        if isinstance(user, dict):  # as Open WebUI sends it
            user = user.get("id")
        return str(user)[:_LONGEST_ASKER] if isinstance(user, str | int) else ""

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the count of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether each chunk of a stream has the count of the tokens so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    def options(self) -> dict[str, Any]:
        """Return what `Model.options` takes, of the parameters that were given."""
        named = self.given()
        for name in _CONVERTED.keys() & named.keys():
            named[name] = _CONVERTED[name](named[name])
        return {"stop": self.stops, **named}


class CompletionRequest(_Generation):
    """The body of `POST /v1/completions`."""

    place = "completions"
    prompt: str | list[str] | list[int] | list[list[int]] = Field(max_length=2**24)
    logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP_LOGPROBS)
    echo: bool = False
    max_tokens: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _check_prompts(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 asks for nothing, unless with echo: true")
        if not 1 <= len(self.prompts) <= MOST_PROMPTS:
            raise ValueError(f"prompt must hold 1 to {MOST_PROMPTS} prompts")
        return self

    @property
    def prompts(self) -> tuple[str | tuple[int, ...], ...]:
        """The prompts, as texts or token ids."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if self.prompt and isinstance(self.prompt[0], int):
            return (tuple(token for token in self.prompt if isinstance(token, int)),)
        return tuple(entry if isinstance(entry, str) else tuple(entry) for entry in self.prompt)  # pyright: ignore[reportArgumentType]

    @property
    def silent(self) -> bool:
        """Whether the prompt alone is wanted back."""
        return self.max_tokens == 0

    def options(self) -> dict[str, Any]:
        """Return what `Model.options` takes; see `_Generation.options`."""
        options = super().options()
        if self.silent:
            del options["max_tokens"]
        if self.logprobs is not None:
            options["logprobs"] = self.logprobs
        return options


class TokenizeRequest(Part):
    """The body of `POST /tokenize`."""

    place = "tokenize"
    model: str | None = None
    prompt: str = Field(max_length=2**24)


class DetokenizeRequest(Part):
    """The body of `POST /detokenize`."""

    place = "detokenize"
    model: str | None = None
    tokens: list[int] = Field(min_length=1, max_length=2**24)


class TextPart(Part):
    """A part of a message's content."""

    place = "messages[].content[]"
    type: Literal["text"]
    text: str


class FunctionCall(Part):
    """The function of a tool call."""

    place = "messages[].tool_calls[].function"
    name: str
    arguments: str


class ToolCall(Part):
    """A tool call of an earlier answer."""

    place = "messages[].tool_calls[]"
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


Content = str | list[TextPart]


class _Message(Part):
    place = "messages[]"
    content: Content
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class SystemMessage(_Message):
    """A message of the system, or of the developer, which is the same here."""

    role: Literal["system", "developer"]


class UserMessage(_Message):
    """A message of the user."""

    role: Literal["user"]


class AssistantMessage(_Message):
    """An earlier answer."""

    role: Literal["assistant"]
    content: Content = ""
    tool_calls: list[ToolCall] = Field(default=[], max_length=MOST_CALLS)


class ToolMessage(_Message):
    """What a tool returned."""

    role: Literal["tool"]
    tool_call_id: str


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]


class Function(Part):
    """A function that the model may call."""

    place = "tools[].function"
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool = False


class Tool(Part):
    """An entry of `tools`."""

    place = "tools[]"
    type: Literal["function"]
    function: Function


class FunctionName(Part):
    """A function by name."""

    place = "tool_choice.function"
    name: str


class ToolChoice(Part):
    """`tool_choice` for one function."""

    place = "tool_choice"
    type: Literal["function"]
    function: FunctionName


class ChatRequest(_Generation):
    """The body of `POST /v1/chat/completions`."""

    place = "chat"
    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP_LOGPROBS)
    tools: list[Tool] = Field(default=[], max_length=128)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "ChatRequest":
        if self.max_completion_tokens and super().options().get("max_tokens") not in (None, self.max_completion_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice needs tools")
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("tools must not hold two functions of one name")
        if isinstance(self.tool_choice, ToolChoice) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which tools does not hold")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other; give one of them")
        if self.continue_final_message and not self._ends_open:
            raise ValueError("continue_final_message needs a last message of the assistant, without tool calls")
        if self.calls_tools and (form := next(iter(self.forms), None)):
            raise ValueError(f"{form} cannot be had together with tools (unless tool_choice is none)")
        return self

    @property
    def calls_tools(self) -> bool:
        """Whether the answer may hold tool calls."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def _ends_open(self) -> bool:
        last = self.messages[-1]
        return isinstance(last, AssistantMessage) and not last.tool_calls

    @property
    def continues(self) -> bool:
        """Whether the answer continues the last message: where that is the assistant's, unless told otherwise."""
        wanted = self.continue_final_message
        return self._ends_open and (self.add_generation_prompt is None if wanted is None else wanted)

    @property
    def opens(self) -> bool:
        """Whether the prompt opens the assistant's next message."""
        return not self.continues and self.add_generation_prompt is not False

    def options(self) -> dict[str, Any]:
        """Return what `Model.options` takes; see `_Generation.options`."""
        options = super().options()
        if self.max_completion_tokens:
            options["max_tokens"] = self.max_completion_tokens
        if self.logprobs:
            options["logprobs"] = self.top_logprobs or 0
        return options


def parse(kind: type[_R], body: bytes | Mapping[str, Any], notes: Notes | None = None) -> _R:
    """Return a request from the body of an HTTP request.

    Args:
        kind: which request.
        body: JSON, or the values of its object.
        notes: takes what was found besides the parameters that are used, and says whether unknown ones are refused.

    Raises:
        ApiError: it is not valid JSON (status 400), holds too much (413), or a parameter is not supported or wrong; the
            error names it.

    """
    return checked(kind, read_object(body) if isinstance(body, bytes) else body, notes)


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises:
        ApiError: it is none (status 400), or holds too much (413).

    """
    check_parts(body)
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the request's body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(values, dict):
        raise ApiError(400, f"the request's body must be a JSON object, got {type(values).__name__}")
    return values


def checked(kind: type[_R], values: Mapping[str, Any], notes: Notes | None = None) -> _R:
    """Return a request from the values of a JSON object; arguments and errors as for `parse`."""
    try:
        return kind.model_validate(values, context=notes)
    except ValidationError as error:
        raise _parameter_error(error, values, kind) from error


def _parameter_error(error: ValidationError, values: Mapping[str, Any], kind: type[BaseModel]) -> ApiError:
    # An alternative that does not fit at all says less than one that failed further in.
    details = max(error.errors(include_url=False), key=lambda entry: len(entry["loc"]))
    if details["type"] == _UNSUPPORTED:
        param = ".".join(map(str, _path((*details["loc"], details.get("ctx", {})["name"]), values, {})))
        return ApiError(400, f"unsupported parameter: {param} ({details['msg']})", param=param, code=_UNSUPPORTED)
    param = ".".join(map(str, _path(details["loc"], values, _others(kind)))) or None
    message = details["msg"].removeprefix("Value error, ")
    if param and not details["type"].startswith("value_error"):
        message = f"{param}: {message}"
    return ApiError(400, message, param=param, code="invalid_value")


def _others(kind: type[BaseModel]) -> dict[str, list[str]]:
    """Return the other names of a protocol's parameters, by their own."""
    others: dict[str, list[str]] = {}
    for table in kind.table.values() if issubclass(kind, Part) else ():
        for entry in table.values():
            others.setdefault(entry.same_as, []).append(entry.name)
    return others


def _path(location: tuple[Any, ...], values: Any, others: Mapping[str, list[str]]) -> list[Any]:
    """Return where an error is in the request, by the names that stand there.

    Pydantic's names of the alternatives on the way are left out.
    """
    path: list[Any] = []
    for position, part in enumerate(location):
        inside = (
            part in values if isinstance(values, Mapping) else isinstance(values, list) and part in range(len(values))
        )
        if inside:
            path.append(part)
            values = values[part]
        elif isinstance(values, Mapping) and position == len(location) - 1:
            given = [name for name in others.get(part, ()) if name in values]
            path.append(given[0] if given else part)  # under another name, or what is missing
    return path
