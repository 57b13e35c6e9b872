"""Where the prompts of `generate` come from: flags, files, standard input, and files of JSON lines."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configs import UsageError
from ..configs.options import OPTIONS, spelled

if TYPE_CHECKING:
    from ..runtime import Guidance

_KINDS = {"logprobs": int, **{name: option.kind for name, option in OPTIONS.items()}}
_FORM = "response_format"
_NO_PROMPT = "give a prompt: -p TEXT, -f FILE, or text on stdin"
_KEYS = ("id", "prompt", "messages", "system", "raw", "template_variables", _FORM, *_KINDS)
_EXPECTED = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    tuple: "a text or a list of texts",
    dict: "numbers by token id",
}


@dataclass(frozen=True)
class Request:
    """One prompt and how to answer it."""

    prompt: Any
    """A text, or messages."""
    system: str | None
    raw: bool
    options: Mapping[str, Any]
    """Options of `Model.generate`."""
    variables: Mapping[str, Any] | None = None
    """Further names that the chat template reads."""
    id: Any = None
    """What a line of --jsonl calls itself."""


def read_prompts(prompts: Sequence[str], files: Sequence[Path]) -> list[str]:
    """Return the prompts of the flags, or the one on standard input where there are none.

    Raises:
        UsageError: there are none at all, or a file cannot be read.

    """
    if not prompts and not files:
        if sys.stdin.isatty():
            raise UsageError(_NO_PROMPT)
        if not (text := _read_stdin()):
            raise UsageError(f"stdin is empty: {_NO_PROMPT}")
        return [text]
    if [*prompts, *map(str, files)].count("-") > 1:
        raise UsageError("stdin (-) can be read once only")
    return [_read_stdin() if text == "-" else text for text in prompts] + [read_file(path) for path in files]


def _read_stdin() -> str:
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8 text: {error}") from error
    # A shell's `echo` ends with a newline that nobody meant to ask about.
    return text.removesuffix("\n").removesuffix("\r")


def read_file(path: Path) -> str:
    """Return the text of a file, or of standard input for `-`.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.

    """
    if str(path) == "-":
        return _read_stdin()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text: {error}") from error


def read_variables(given: Sequence[str]) -> dict[str, Any]:
    """Return variables of a chat template from `NAME=VALUE`; a value is JSON where it can be read so, else text.

    Raises:
        UsageError: one has no name or no `=`.

    """
    found: dict[str, Any] = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not name.isidentifier() or not equals:
            raise UsageError(f"--template-variable must be NAME=VALUE, got {entry!r:.40}")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def prefilled(text: str, beginning: str) -> list[dict[str, str]]:
    """Return the conversation in which a text was asked and the answer has begun."""
    return [{"role": "user", "content": text}, {"role": "assistant", "content": beginning}]


def read_jsonl(path: Path, system: str | None, raw: bool, options: Mapping[str, Any]) -> list[Request]:
    """Return the requests of a file of JSON lines.

    Args:
        path: the file, or `-`.
        system: the system message of requests that name none.
        raw: whether requests that do not say so are raw.
        options: options of `Model.generate` for requests that do not name them.

    Raises:
        UsageError: lines are malformed; the message has the first ten.

    """
    requests: list[Request] = []
    problems: list[str] = []
    for number, line in enumerate(read_file(path).splitlines(), start=1):
        if line.strip():
            try:
                requests.append(_parse_request(line, system, raw, options))
            except UsageError as error:
                problems.append(f"line {number}: {error}")
    if problems:
        raise UsageError(f"{path}: {'; '.join(problems[:10])}{' ...' if len(problems) > 10 else ''}")
    if not requests:
        raise UsageError(f"{path} holds no requests")
    return requests


def _parse_request(line: str, system: str | None, raw: bool, options: Mapping[str, Any]) -> Request:
    try:
        table = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not valid JSON ({error})") from error
    if not isinstance(table, dict):
        raise UsageError(f"must be a JSON object, got {line!r:.40}")
    table = spelled(table)
    if unknown := sorted(set(table) - set(_KEYS)):
        raise UsageError(f"unknown key {unknown[0]!r}; known: {', '.join(_KEYS)}")
    if ("prompt" in table) == ("messages" in table):
        raise UsageError("must have either prompt or messages")
    prompt = table.get("prompt", table.get("messages"))
    if "messages" in table:
        from ..runtime.chat import check_messages

        check_messages(prompt if isinstance(prompt, list) else [prompt])
    elif not isinstance(prompt, str):
        raise UsageError(f"prompt must be a text, got {prompt!r:.40}")
    variables = table.get("template_variables")
    if not isinstance(variables, dict | None):
        raise UsageError(f"template_variables must be a JSON object, got {variables!r:.40}")
    given = {key: value for key, value in table.items() if key in _KINDS and value is not None}
    _check_kinds(given)
    if (form := table.get(_FORM)) is not None:
        given["guidance"] = _guidance(form)
    return Request(
        prompt,
        table.get("system", system),
        bool(table.get("raw", raw)),
        {**options, **given},
        variables,
        table.get("id"),
    )


def _guidance(form: Any) -> "Guidance | None":
    """Return the guidance of a `response_format`, as OpenAI's protocol has it; None for any text."""
    from ..runtime import Guidance

    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        schema = {"type": "object"}
    else:
        inner = form.get("json_schema") if kind == "json_schema" else None
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if not isinstance(schema, dict):
            raise UsageError(
                f'{_FORM} must be {{"type": "text"}}, {{"type": "json_object"}} or '
                f'{{"type": "json_schema", "json_schema": {{"schema": ...}}}}, got {json.dumps(form):.80}'
            )
    return Guidance("json_schema", json.dumps(schema))


def _check_kinds(given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if not _is_of(value, _KINDS[key]):
            raise UsageError(f"{key} must be {_EXPECTED[_KINDS[key]]}, got {value!r:.40}")


def _is_of(value: Any, kind: type) -> bool:
    if kind is tuple:
        return all(isinstance(text, str) for text in (value if isinstance(value, list) else [value]))
    if kind is dict:
        return isinstance(value, dict) and all(_is_of(number, float) for number in value.values())
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, int | float if kind is float else int)
