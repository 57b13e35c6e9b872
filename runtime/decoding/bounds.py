"""Bounds on schemas, regular expressions and grammars, checked on their text before any engine sees them.

A grammar's compiler writes a repetition out: `minItems: 1000000000` in a schema of 60 bytes takes all of a machine's
memory. What is counted here is what it would have to write out.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from ...configs import UsageError

MOST_BYTES = 256 * 1024
MOST_DEPTH = 64
MOST_PARTS = 10_000
"""Values in a schema, of every kind and at every depth."""
MOST_NAMES = 400
"""Properties of one object, or alternatives at one place: llguidance's parser holds 2,000 items at a position, and
takes four for a property. The same number of alternatives that are constants is nothing to it."""
MOST_CONSTANTS = 4_000
MOST_REPEATS = 10_000
"""What all counts come to, nested ones multiplied: characters of a string, elements of a list, copies in a regex."""

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_ALTERNATIVES = ("anyOf", "oneOf", "allOf", "prefixItems")
_REPEAT = re.compile(r"\{\s*(\d+)?\s*(?:(,)\s*(\d+)?)?\s*\}|~\s*(\d+)(?:\s*\.\.\s*(\d+))?")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


def check_bounds(kind: str, text: str) -> None:
    """Refuse guidance whose compiling could take more time or memory than an answer is worth.

    Args:
        kind: `json_schema`, `regex` or `lark_grammar`.
        text: it.

    Raises:
        UsageError: it passes a bound; the message names the bound and what the text has.

    """
    _at_most(len(text.encode("utf-8", "surrogatepass")), MOST_BYTES, "bytes", kind)
    if kind == "json_schema":
        _check_schema(_loaded(text), kind)
        return
    if kind == "lark_grammar":
        rest, position = [], 0
        for schema, (start, end) in _embedded(text):
            _check_schema(schema, kind)
            rest.append(text[position:start])
            position = end
        text = " ".join([*rest, text[position:]])
    _at_most(repeats(text), MOST_REPEATS, "repetitions", kind)


def repeats(pattern: str) -> int:
    """Return how often the most repeated part of a pattern would be written out, nested counts multiplied.

    Raises:
        UsageError: its groups are nested too deep.

    """
    most, groups, last, position, closed = 0, [1], 1, 0, True
    # groups[-1] is the largest count inside the group that is open; `last` that of the part just closed. A class
    # that nothing closes is looked for once: a text of brackets would take the square of its length.
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            last, position = 1, position + 2
            continue
        if character == "[" and closed:
            found = _CLASS.match(pattern, position)
            last, position, closed = 1, found.end() if found else position + 1, found is not None
            continue
        if character == "(":
            groups.append(1)
            _at_most(len(groups) - 1, MOST_DEPTH, "levels of nesting", "pattern")
            last = 1
        elif character == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] = max(groups[-1], last)
        elif character in "{~" and (found := _REPEAT.match(pattern, position)):
            last *= max([1, *(_count(number) for number in found.group(1, 3, 4, 5) if number)])
            groups[-1] = max(groups[-1], last)
            most, position = max(most, last), found.end()
            continue
        elif character not in "*+?":
            last = 1
        position += 1
    return most


def _check_schema(schema: Any, kind: str) -> None:
    parts = total = 0
    stack: list[tuple[Any, int, str]] = [(schema, 1, "")]
    while stack:
        value, depth, name = stack.pop()
        parts += 1
        _at_most(parts, MOST_PARTS, "values", kind)
        _at_most(depth, MOST_DEPTH, "levels of nesting", kind)
        if isinstance(value, dict):
            for key in _COUNTS:
                total += _counted(value, key)
            if isinstance(pattern := value.get("pattern"), str):
                total += repeats(pattern)
            if isinstance(patterns := value.get("patternProperties"), dict):
                total += sum(map(repeats, patterns))
            _at_most(total, MOST_REPEATS, "repetitions (minItems, maxLength, pattern and the like, together)", kind)
            if name in ("properties", "patternProperties", "$defs", "definitions"):
                _at_most(len(value), MOST_NAMES, f"entries of {name}", kind)
            stack += [(inner, depth + 1, key) for key, inner in value.items()]
        elif isinstance(value, list):
            if name in ("enum", "required"):
                _at_most(len(value), MOST_CONSTANTS, f"entries of {name}", kind)
                parts -= len(value)  # they have a bound of their own
            elif name in _ALTERNATIVES:
                _at_most(len(value), MOST_NAMES, f"entries of {name}", kind)
            stack += [(inner, depth + 1, "") for inner in value]


def _counted(schema: dict[str, Any], key: str) -> int:
    value = schema.get(key, 0)
    return min(int(value), 10**18) if isinstance(value, int | float) and 0 < value < float("inf") else 0


def _embedded(grammar: str) -> Iterator[tuple[Any, tuple[int, int]]]:
    """Return the JSON schemas within a Lark grammar, and where they stand."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"%json\s*", grammar):
        try:
            schema, end = decoder.raw_decode(grammar, found.end())
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the grammar's %json is not valid JSON: {str(error)[:200]}") from error
        yield schema, (found.end(), end)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UsageError(f"the json_schema has more than {MOST_DEPTH} levels of nesting, which is the limit") from error
    except ValueError as error:
        raise UsageError(f"the JSON schema is not valid JSON: {str(error)[:200]}") from error


def _count(digits: str) -> int:
    return int(digits) if len(digits) < 10 else 10**9


def _at_most(count: int, most: int, what: str, kind: str) -> None:
    if count > most:
        raise UsageError(f"the {kind} has {count:,} {what}, more than the limit of {most:,}; make it smaller")
