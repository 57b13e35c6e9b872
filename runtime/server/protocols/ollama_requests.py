"""What Ollama's protocol asks for (https://docs.ollama.com/api), checked, and as a chat of this server's."""

import json
from collections import deque
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from ..parameters import Notes, Parameter, Places, hints, option_parameters, refused, table_of, used
from ..requests import MOST_CALLS, MOST_TOP_LOGPROBS, ChatRequest, Numbers, Part, Tool, checked

_MODEL = "The model's name, with or without `:latest`."
_BOTH = (
    *used(
        model=_MODEL,
        stream="Whether to send the answer piece by piece, which is done unless this is false.",
        options="The options of the answer.",
        logprobs="Whether to give the log probability of each token.",
        top_logprobs="How many of the most likely tokens to give at each place, 0 to 20.",
    ),
    Parameter("format", "used", "`json`, or the JSON schema that the answer must follow.", ("",)),
    *hints("The model is loaded as long as the server runs.", "keep_alive"),
    *hints("What does not fit into the context is neither cut nor moved.", "truncate shift"),
    *refused("the model does not think apart from its answer", "think", False),
)

OLLAMA: Places = MappingProxyType(
    {
        "/api/chat": table_of(
            _BOTH,
            used(messages="The conversation, oldest message first."),
            [Parameter("tools", "used", "Functions that the model may call.", ([],))],
        ),
        "/api/generate": table_of(
            _BOTH,
            used(
                prompt="The question; without one, the answer is empty and says that the model is loaded.",
                system="What the system says before it.",
                raw="Whether the prompt is continued as it is, without the chat template.",
            ),
            refused("the model reads text alone", "images", []),
            refused("the model writes what comes next, not what stands between", "suffix", ""),
            refused("the package's own template is used always", "template", ""),
            refused("answers have no context to go on from; use /api/chat", "context", []),
            refused("the model writes text alone", "width height steps", 0),
        ),
        "/api/show": table_of(
            used(model=_MODEL),
            [Parameter("name", "used", "The same as model.", same_as="model")],
            hints("There are no tensors to list.", "verbose"),
            refused("the package's own template and system message are used always", "template system", ""),
            refused("options go with each request", "options", {}),
        ),
        "options": table_of(
            # -1 and less stand for "no limit" and for "any seed".
            option_parameters(max_tokens=(-1,), seed=(-1,)),
            [Parameter("num_predict", "used", "The same as max_tokens.", (-2, -1, 0), same_as="max_tokens")],
            hints("How the model is loaded is the server's matter.", "num_ctx num_keep num_batch num_gpu num_thread"),
            hints(
                "How the model is loaded is the server's matter.", "main_gpu low_vram f16_kv use_mmap use_mlock numa"
            ),
            hints("It has no effect on answers.", "vocab_only logits_all embedding_only draft_num_predict"),
            hints("It only matters beside a parameter that is refused.", "mirostat_tau mirostat_eta"),
            refused("not implemented; use temperature, top_p, top_k or min_p", "mirostat", 0),
            refused("not implemented; use temperature, top_p, top_k or min_p", "tfs_z", 1),
            hints("The penalties, where they are asked for, count the whole text.", "repeat_last_n"),
            refused("the penalties count all tokens", "penalize_newline", True),
        ),
        "messages[]": table_of(
            used(
                role="`system`, `user`, `assistant`, or `tool`.",
                content="The text.",
                tool_calls="An assistant's calls.",
                tool_name="The function whose result a `tool` message holds.",
                tool_call_id="The call that a `tool` message answers; otherwise they answer the calls in turn.",
            ),
            hints("It came with an earlier answer of some server, and is not part of its text.", "thinking"),
            refused("the model reads text alone", "images", []),
        ),
        "messages[].tool_calls[]": table_of(
            used(function="The function and its arguments.", id="The call's id."),
            hints("Every call is of a function.", "type"),
        ),
        "messages[].tool_calls[].function": table_of(
            used(name="The function's name.", arguments="Its arguments, as an object."),
            hints("The order of the calls is that of the list.", "index description"),
        ),
    }
)
"""What becomes of each parameter, by where it stands."""


class _Part(Part):
    table = OLLAMA


class OllamaFunctionCall(_Part):
    """The function of a call."""

    place = "messages[].tool_calls[].function"
    name: str
    arguments: dict[str, Any] = Field(default={})


class OllamaToolCall(_Part):
    """A call of an earlier answer."""

    place = "messages[].tool_calls[]"
    id: str | None = None
    function: OllamaFunctionCall


class OllamaMessage(_Part):
    """A message of a conversation."""

    place = "messages[]"
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: list[OllamaToolCall] = Field(default=[], max_length=MOST_CALLS)
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaOptions(Numbers):
    """`options`."""

    table = OLLAMA
    place = "options"
    stop: str | list[str] = Field(default=[], max_length=2**16)


class _Asked(_Part):
    """What both kinds of answers have in common."""

    model: str
    stream: bool = True
    format: Literal["json"] | dict[str, Any] | None = None
    options: OllamaOptions = OllamaOptions()
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP_LOGPROBS)

    def _chat(self, messages: list[dict[str, Any]], notes: Notes, tools: list[dict[str, Any]]) -> ChatRequest:
        values: dict[str, Any] = {"messages": messages, "tools": tools, "stream": self.stream, **self.options.given()}
        values |= {"stop": self.options.stop, "logprobs": self.logprobs, "top_logprobs": self.top_logprobs}
        if self.format == "json":
            values["response_format"] = {"type": "json_object"}
        elif self.format is not None:
            values["response_format"] = {"type": "json_schema", "json_schema": {"schema": self.format}}
        return checked(ChatRequest, values, notes)


class OllamaChat(_Asked):
    """The body of `POST /api/chat`."""

    place = "/api/chat"
    messages: list[OllamaMessage] = Field(default=[], max_length=4096)
    tools: list[Tool] = Field(default=[], max_length=128)

    def chat(self, notes: Notes) -> ChatRequest:
        """Return it as a chat; errors as for `requests.checked`."""
        return self._chat(_messages(self.messages), notes, [tool.model_dump() for tool in self.tools])


class OllamaGenerate(_Asked):
    """The body of `POST /api/generate`."""

    place = "/api/generate"
    prompt: str = Field(default="", max_length=2**24)
    system: str = ""
    raw: bool = False

    def chat(self, notes: Notes) -> ChatRequest:
        """Return it as a chat of one question; errors as for `requests.checked`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self._chat([*system, {"role": "user", "content": self.prompt}], notes, [])


class OllamaShow(_Part):
    """The body of `POST /api/show`."""

    place = "/api/show"
    model: str


def _messages(given: list[OllamaMessage]) -> list[dict[str, Any]]:
    """Return messages with an id for every call, and for every result that of its call."""
    made: list[dict[str, Any]] = []
    waiting: deque[tuple[str, str]] = deque()  # id and name of calls without a result so far
    numbers = 0
    for message in given:
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.role == "assistant" and message.tool_calls:
            entry["tool_calls"] = []
            waiting.clear()
            for call in message.tool_calls:
                numbers += 1
                number = call.id or f"call_{numbers}"
                waiting.append((number, call.function.name))
                function = {"name": call.function.name, "arguments": json.dumps(call.function.arguments)}
                entry["tool_calls"].append({"id": number, "function": function})
        if message.role == "tool":
            answered = _answered(message, waiting)
            entry["tool_call_id"] = message.tool_call_id or answered
            entry["name"] = message.tool_name
        made.append(entry)
    return made


def _answered(message: OllamaMessage, waiting: deque[tuple[str, str]]) -> str:
    """Return the id of the call that a result is of, which waits no more; empty where there is none."""
    for call in waiting:
        if message.tool_call_id == call[0] or (not message.tool_call_id and message.tool_name in (None, call[1])):
            waiting.remove(call)
            return call[0]
    return ""
