"""Chat templates, rendered by Jinja itself in its sandbox, as `apply_chat_template` of transformers does."""

import json
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ...configs import PackageError, UsageError
from ...configs.files import read_text

Message = Mapping[str, Any]
"""`role` and `content`, and whatever else the model's template reads."""
Dialect = Literal["convention", "template", "phi4"]
"""`convention`: the template has no place for tools, so the system message has to tell of them (Phi-3, Phi-3.5).
`template`: it takes tools and calls as they are, as transformers gives them. `phi4`: it puts the text of a system
message's `tools` between `<|tool|>` marks, and knows of no calls (Phi-4-mini)."""
_OWN_NAMES = frozenset({"messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now"})
"""What a template gets from the conversation and from here, and not as a variable."""
_IN_A_MESSAGE = re.compile(r"""message(?:\[\s*["']tools["']\s*\]|\.tools\b)""")


class ChatTemplate:
    """The template that turns a conversation into one prompt."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str = "the chat template") -> None:
        """Keep a template; it is compiled when it is first rendered.

        Args:
            source: its text, in Jinja.
            special_tokens: the tokenizer's named tokens, which it may use.
            where: how to call it in an error.

        """
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._where = where
        self._compiled: Any = None
        self._lock = threading.Lock()

    @property
    def dialect(self) -> Dialect:
        """How it has the model told of tools, by its text."""
        if _IN_A_MESSAGE.search(self.source):
            return "phi4"
        return "template" if re.search(r"\btools\b", self.source) else "convention"

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt for a conversation.

        Args:
            messages: the conversation, oldest first.
            add_generation_prompt: whether to open the assistant's next message.
            continue_final_message: whether the prompt ends within the last message, right after its words, so that the
                answer continues it; no other message is opened then.
            tools: functions that the model may call, as JSON schemas.
            variables: further names that the template reads.

        Raises:
            UsageError: there are no messages, or the template refuses them, or it changes the last one, so that it
                cannot be continued; or a variable has the name of something else.
            PackageError: the template is not valid Jinja, or fails.

        """
        if taken := sorted(_OWN_NAMES & set(variables or {})):
            raise UsageError(f"{taken[0]} is not a variable of chat templates; it comes from the conversation")
        if continue_final_message:
            return self._opened(messages, tools, variables)
        from jinja2 import TemplateError, TemplateSyntaxError

        if not messages:
            raise UsageError("a conversation must hold at least one message")
        # Templates test whether a key is there, so one whose value is None has to go.
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        values = {
            "messages": plain,
            "tools": [dict(tool) for tool in tools] if tools is not None else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._special_tokens,
            **(variables or {}),
        }
        try:
            with self._lock:  # what a rendering takes is counted in the environment
                if self._compiled is None:
                    self._compiled = _environment().from_string(self.source)
                return self._compiled.environment.render_limited(self._compiled, values)
        except _RefusedError as error:
            raise UsageError(f"{self._where} refuses this conversation: {error}") from error
        except TemplateSyntaxError as error:
            raise PackageError(f"{self._where} is not valid Jinja (line {error.lineno}): {error.message}") from error
        except TemplateError as error:
            raise PackageError(f"{self._where} fails on this conversation: {_line(error)}") from error
        except Exception as error:  # it is a program, of a file: it can raise what Python can
            reason = _line(error) if isinstance(error, TypeError | ValueError | KeyError) else ""
            problem = reason or f"{type(error).__name__} {_line(error)}".strip()
            raise PackageError(f"{self._where} fails on this conversation: {problem}") from error

    def _opened(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any] | None,
    ) -> str:
        """Render a conversation and cut what the template puts after the words of its last message."""
        if not messages:
            raise UsageError("a conversation must hold at least one message")
        mark = secrets.token_hex(16)
        last = {**messages[-1], "content": f"{messages[-1].get('content') or ''}{mark}"}
        rendered = self.render([*messages[:-1], last], add_generation_prompt=False, tools=tools, variables=variables)
        before, found, _ = rendered.rpartition(mark)
        if not found:
            raise UsageError(f"{self._where} changes the last message, so it cannot be continued")
        return before


def is_open(messages: Sequence[Message]) -> bool:
    """Return whether a conversation ends in words of the assistant, which an answer continues."""
    return bool(messages) and messages[-1].get("role") == "assistant" and not messages[-1].get("tool_calls")


def read_template(folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """Return the chat template of a package: `chat_template.jinja`, or the one in `tokenizer_config.json`.

    Args:
        folder: the package's.
        config: the content of its `tokenizer_config.json`.
        special_tokens: its tokenizer's named tokens.

    Returns:
        None for a package without one.

    Raises:
        PackageError: the file cannot be read, or there are several templates and none is the default.

    """
    path = folder / "chat_template.jinja"
    source: Any = read_text(path)
    if source is not None:
        return ChatTemplate(source, special_tokens, path.name)
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in source}
        if "default" not in named:
            raise PackageError(f"{folder} has chat templates {', '.join(sorted(named))} and none called default")
        source = named["default"]
    return ChatTemplate(source, special_tokens) if isinstance(source, str) else None


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


class _RefusedError(Exception):
    """A template called `raise_exception`."""


def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols

    from .sandbox import LimitedEnvironment

    class GenerationTag(Extension):
        # {% generation %} marks the assistant's words for training; here it only shows what is inside. A call block,
        # as in transformers, so that what is set inside does not leave it.
        tags = {"generation"}  # noqa: RUF012  # Jinja's own way to declare them

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

        def _inside(self, caller: Any) -> str:
            return caller()

    environment = LimitedEnvironment(
        {"tojson": _tojson}, trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise _RefusedError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
