"""Which regular expressions of a file are run: those whose time cannot explode, whatever name they are tried on.

Python's engine tries every way to split a text between repetitions. Nested ones have exponentially many, several in a
row as many as the text's length to the power of their number.
"""

import re
from re import _constants, _parser  # pyright: ignore[reportAttributeAccessIssue]  # the parser of `re` itself
from typing import Any

_LONGEST = 4000
_MOST_IN_A_ROW = 5
_OPEN = 8
"""Repetitions of at most so many times are as good as written out."""
_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT)


def check_expression(pattern: str) -> None:
    """Refuse an expression that is too long, or may take more than a moment.

    Raises:
        re.error: it is none, or one of those; the message says which.

    """
    if len(pattern) > _LONGEST:
        raise re.error(f"longer than {_LONGEST} characters")
    try:
        parsed = _parser.parse(pattern)
    except (RecursionError, OverflowError) as error:
        raise re.error("nested too deep, or with too large numbers") from error
    if _repeats(parsed) > _MOST_IN_A_ROW:
        raise re.error(f"more than {_MOST_IN_A_ROW} repetitions in a row")


def _repeats(parsed: Any) -> int:
    """Return how many open repetitions stand in a row at most; refuse what repeats something of several lengths."""
    count = 0
    for kind, value in parsed:
        if kind in _REPEATS:
            _, most, inner = value
            inside = _repeats(inner)
            if most > _OPEN and (inside or _branches(inner)):
                raise re.error("a repetition of repetitions or of alternatives")
            count += 1 if most > _OPEN else most * inside
        elif kind is _constants.BRANCH:
            count += max(_repeats(branch) for branch in value[1])
        elif isinstance(value, tuple | list):  # groups, look-arounds, conditions
            count += sum(_repeats(part) for part in value if isinstance(part, _parser.SubPattern))
    return count


def _branches(parsed: Any) -> bool:
    """Whether there are alternatives, or something that may be left out, at any depth."""
    return any(
        kind is _constants.BRANCH
        or kind in _REPEATS
        or (isinstance(value, tuple | list) and any(_branches(p) for p in value if isinstance(p, _parser.SubPattern)))
        for kind, value in parsed
    )
