"""What can be said to `chat` besides messages: /help, /set and the rest."""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..configs import UsageError
from ..configs.files import parse_json, read_text, replacing
from ..configs.options import OPTIONS, SPELLINGS
from .answering import read_pairs
from .screen import reply

if TYPE_CHECKING:
    from ..runtime import ChatSession, Model, Response
    from ..runtime.decoding.generation import GenerateOptions

_READERS: Mapping[type, Callable[[str], Any]] = {
    float: float,
    int: int,
    bool: lambda text: {"on": True, "off": False}[text],
    tuple: shlex.split,
    dict: lambda text: read_pairs(shlex.split(text)),
}


GROUPS = {
    "The conversation": ("regen", "undo", "clear", "read", "save", "load"),
    "How it answers": ("system", "set", "show"),
    "The chat": ("stats", "help", "bye"),
}
"""The commands as /help lists them."""


class ChatCommands:
    """The commands of one chat. Each returns nothing, and says on stderr what it did."""

    def __init__(self, model: "Model", session: "ChatSession") -> None:
        self._model = model
        self._session = session
        self._responses: list[Response] = []
        self.attached = ""
        """Text that /read puts in front of the next message."""
        self.done = False
        """Whether /bye was said."""
        self.again = False
        """Whether /regen asks for another answer."""

    def run(self, line: str) -> None:
        """Carry out a line that begins with a slash.

        Raises:
            UsageError: there is no such command, or it cannot be done.

        """
        name, _, argument = line[1:].strip().partition(" ")
        method = getattr(self, f"do_{name}", None)
        if method is None:
            raise UsageError(f"unknown command /{name}; /help lists them (// begins a message with a slash)")
        method(argument.strip())

    def record(self, response: "Response") -> None:
        """Count an answer for /stats."""
        self._responses.append(response)

    def open(self) -> None:
        """Say in a line how the model, which was named before, answers; /show says the rest."""
        options = self._model.options(**self._session.settings)
        system = self._session.system or "none"
        reply(f"{self._model.context_length} tokens of context; sampling: {options.sampling}; system message: {system}")

    def do_help(self, _: str) -> None:
        """List the commands."""
        width = max(len(name) for names in GROUPS.values() for name in names) + 1
        for title, names in GROUPS.items():
            reply(f"{title}:")
            for name in names:
                reply(f"  {f'/{name}':<{width}}  {getattr(self, f'do_{name}').__doc__}")
        reply('Several lines: put them between two """. Ctrl-C stops an answer, twice ends the chat.')

    def do_bye(self, _: str) -> None:
        """End the chat."""
        self.done = True

    def do_clear(self, _: str) -> None:
        """Forget the conversation, not the system message."""
        self._session.clear()
        self.attached = ""
        reply("the conversation is empty")

    def do_regen(self, _: str) -> None:
        """Answer the last message again."""
        self.again = True

    def do_undo(self, _: str) -> None:
        """Forget the last message and its answer."""
        reply("undone" if self._session.undo() else "there is nothing to undo")

    def do_system(self, text: str) -> None:
        """Show the system message, or set it: /system TEXT (/system none removes it)."""
        if text:
            self._session.system = None if text == "none" else text
        reply(f"system message: {self._session.system or 'none'}")

    def do_set(self, argument: str) -> None:
        """Change a setting: /set temperature 0.7 (/set temperature default takes it back)."""
        if not argument:
            self.do_show("")
            return
        name, _, value = argument.partition(" ")
        name, value = name.replace("-", "_"), value.strip()
        name = SPELLINGS.get(name, name)
        if name not in OPTIONS or not value:
            raise UsageError(f"say /set NAME VALUE with a name of {', '.join(OPTIONS)}")
        settings: dict[str, Any] = {**self._session.settings}
        if value == "default":
            settings.pop(name, None)
        else:
            try:
                settings[name] = _READERS[OPTIONS[name].kind](value)
            except (ValueError, KeyError) as error:
                raise UsageError(f"{name} cannot be {value!r}") from error
        self._model.options(**settings)  # refuses what is out of range
        self._session.settings = cast("GenerateOptions", settings)
        reply(f"{name}: {settings.get(name, 'default')}")

    def do_show(self, _: str) -> None:
        """Show the settings."""
        options = self._model.options(**self._session.settings)
        reply(f"model: {self._model.package.name} on {self._model.provider}")
        reply(f"system message: {self._session.system or 'none'}")
        reply(f"sampling: {options.sampling}{'' if options.seed is None else f', seed {options.seed}'}")
        reply(f"longest answer: {options.max_tokens or 'what fits, at most 1024'} tokens")
        reply(f"stop: {', '.join(map(repr, options.stop)) or 'none'}")
        reply(f"at the context's end ({self._model.context_length} tokens): {self._session.on_overflow}")

    def do_stats(self, _: str) -> None:
        """Show tokens and speeds of this chat."""
        responses = self._responses
        prompt = sum(r.prompt_tokens for r in responses)
        cached = sum(r.cached_tokens for r in responses)
        answered = sum(r.completion_tokens for r in responses)
        prefill = sum(r.prefill_seconds for r in responses)
        decode = sum(r.decode_seconds for r in responses)
        steps = sum(max(0, r.completion_tokens - 1) for r in responses)
        reply(f"{len(responses)} answers, {len(self._session.messages)} messages, forgotten {self._session.forgotten}")
        reply(f"in the KV cache: {self._session.cached_tokens} of {self._model.context_length} tokens")
        reply(f"prompts: {prompt} tokens, {cached} of them cached, {_rate(prompt - cached, prefill)}")
        reply(f"answers: {answered} tokens, {_rate(steps, decode)}")

    def do_save(self, name: str) -> None:
        """Save the conversation: /save FILE."""
        path = _path(name)
        text = json.dumps({"messages": list(self._session.messages)}, indent=1, ensure_ascii=False) + "\n"
        try:
            with replacing(path) as beside:
                beside.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error}") from error
        reply(f"saved {len(self._session.messages)} messages to {path}")

    def do_load(self, name: str) -> None:
        """Continue a saved conversation: /load FILE."""
        path = _path(name)
        text = read_text(path, UsageError)
        if text is None:
            raise UsageError(f"{path} cannot be read: there is no such file")
        table = parse_json(text, path, UsageError)
        messages = table.get("messages") if isinstance(table, dict) else table
        if not isinstance(messages, list):
            raise UsageError(f"{path} holds no list of messages")
        self._session.messages = messages
        reply(f"loaded {len(messages)} messages from {path}")

    def do_read(self, name: str) -> None:
        """Put a file's text in front of your next message: /read FILE."""
        path = _path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read as UTF-8 text: {error}") from error
        self.attached += text.rstrip("\n") + "\n\n"
        reply(f"{len(text)} characters of {path} go with your next message")


def _path(name: str) -> Path:
    if not name:
        raise UsageError("name a file")
    return Path(name).expanduser()


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f} tok/s" if seconds > 0 else "no speed yet"
