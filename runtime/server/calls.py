"""Tool calls as models write them: read from an answer, while its text is passed on."""

import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any, NoReturn

_MARKS = {"<tool_call>": "</tool_call>", "<|tool_call|>": "<|/tool_call|>"}
"""What stands before and after calls, anywhere in an answer."""
_STARTS = ("{", "[", "functools[")
"""What calls may begin with besides, at the beginning of an answer alone."""
_LIST = re.compile(r'\s*(?:\{\s*"tool_calls"\s*:\s*)?\[')
_OPENING = re.compile("|".join(map(re.escape, _MARKS)))
_EITHER = re.compile("|".join(map(re.escape, (*_MARKS, *_MARKS.values()))))
_MOST_BROKEN = 32
"""Calls of one answer that may break off; each failure to read one takes time in the length of the answer."""
_BETWEEN = re.compile(r"[\s,;]*")


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


class CallFilter:
    """Passes an answer's text on, and holds back what may be tool calls, to be read at its end."""

    def __init__(self, names: frozenset[str], most: int) -> None:
        """Begin an answer.

        Args:
            names: the functions that may be called.
            most: calls to return at most; what comes after them is left out.

        """
        self._names = names
        self._most = most
        self._held = ""
        self._inside = False
        self._shown = False

    def push(self, text: str) -> str:
        """Take the next piece of text and return what can be shown now."""
        self._held += text
        if self._inside:
            return ""
        found = [mark.start()] if (mark := _OPENING.search(self._held)) else []
        if not self._shown:
            begun = self._held.lstrip()
            if begun.startswith(_STARTS):
                found.append(len(self._held) - len(begun))
            elif any(start.startswith(begun) for start in _STARTS):
                return ""
        if found:
            self._inside = True
            return self._show(min(found))
        return self._show(len(self._held) - _overlap(self._held))

    def finish(self) -> tuple[str, list[Call]]:
        """Return what is left of the answer's text, and the calls that it holds."""
        held, self._held = self._held, ""
        calls, text = read_calls(held, self._names) if self._inside else ([], held)
        return text, calls[: self._most]

    def _show(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        self._shown = self._shown or bool(shown)
        return shown


def read_calls(text: str, names: frozenset[str]) -> tuple[list[Call], str]:
    """Return the calls in an answer that begins with one, and the text around them.

    They come in the forms that models are trained on: our convention, `{"tool_calls": [...]}`; `<tool_call>{...}
    </tool_call>` for each call (Hermes, Qwen); a JSON list after `<|tool_call|>` or `functools` (Phi-4-mini) or alone;
    one JSON object with `name` and `arguments` or `parameters` (Llama 3). Calls of functions that are not in `names`
    are left out, and so is one that is not complete. Where no call remains, all of the text is text.
    """
    calls: list[Call] = []
    around: list[str] = []
    position = broken = 0
    while position < len(text) and broken < _MOST_BROKEN:
        mark = next((mark for mark in _MARKS if text.startswith(mark, position)), "")
        entries, position, whole = _entries(text, position + len(mark))
        if not mark and not all(map(_looks_like_call, entries)):
            return [], text  # JSON that is about something else
        broken += not whole
        calls += [call for entry in entries if (call := _call(entry, names))]
        position = _after(text, position, _MARKS.get(mark, ""), whole)
        found = _OPENING.search(text, position)
        end = found.start() if found else len(text)
        around.append(text[position:end])
        position = end
    return (calls, "".join(part for part in around if part.strip())) if calls else ([], text)


def _entries(text: str, position: int) -> tuple[list[Any], int, bool]:
    """Return what the JSON values from a position on hold, where they end, and whether the last one is complete."""
    entries: list[Any] = []
    if text.startswith("functools", position):
        position += len("functools")
    while text[(start := _skip(text, position)) : start + 1] in ("{", "["):
        try:
            value, position = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            return entries + _complete_ones(text, start), start, False
        if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
            value = value["tool_calls"]
        entries += value if isinstance(value, list) else [value]
    return entries, position, True


def _complete_ones(text: str, position: int) -> list[Any]:
    """Return the objects at the beginning of a list that is cut off, or breaks off."""
    opening = _LIST.match(text, position)
    entries: list[Any] = []
    position = opening.end() if opening else len(text)
    while text.startswith("{", start := _skip(text, position)):
        try:
            value, position = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            break
        entries.append(value)
    return entries


def _after(text: str, position: int, closing: str, whole: bool) -> int:
    """Return where text continues after values, and after the mark that closes them."""
    if whole:
        start = _skip(text, position)
        return start + len(closing) if closing and text.startswith(closing, start) else position
    found = (_EITHER if closing else _OPENING).search(text, position)
    if found is None:
        return len(text)
    return found.start() if found[0] in _MARKS else found.end()


def _skip(text: str, position: int) -> int:
    found = _BETWEEN.match(text, position)
    return found.end() if found else position


def _looks_like_call(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and _arguments(entry) is not None


def _call(entry: Any, names: frozenset[str]) -> Call | None:
    if not _looks_like_call(entry) or entry["name"] not in names or (arguments := _arguments(entry)) is None:
        return None
    return Call(entry["name"], arguments)


def _arguments(entry: dict[str, Any]) -> str | None:
    """Return the arguments of a call as JSON; None where they are no object."""
    arguments = entry.get("arguments", entry.get("parameters", {}))
    if isinstance(arguments, str):  # some write them as JSON within JSON
        try:
            arguments = _DECODER.decode(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(arguments)
    except (ValueError, RecursionError):  # such as a number that is larger than any float
        return None
    return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _overlap(text: str) -> int:
    """Return how much of the end of a text may be the beginning of a mark."""
    return max(
        (length for mark in _MARKS for length in range(1, len(mark)) if text.endswith(mark[:length])),
        default=0,
    )
