"""Forms of an answer as people write them, put into those that engines take: choices of texts, grammars in GBNF."""

import re
from collections.abc import Sequence
from types import MappingProxyType

from ...configs import UsageError
from .bounds import MOST_CONSTANTS

_MOST_WORK = 2_000_000
"""Rules times bytes of a grammar in GBNF: what `llguidance` may take to translate it, a quarter of a second."""
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~/]")
_PART = re.compile(r'#[^\r\n]*|"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]', re.DOTALL)
"""A comment, a literal or a class of GBNF."""
_ESCAPED = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([\[\]])|.)", re.DOTALL)
_IN_LITERALS = MappingProxyType({'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_LARK = re.compile(r"^\s*(?:%llguidance\b|start\s*:)", re.MULTILINE)


def pattern_of(texts: Sequence[str]) -> str:
    """Return the regular expression that exactly these texts match.

    Raises:
        UsageError: there are none, too many, or one is empty.

    """
    if not 1 <= len(texts) <= MOST_CONSTANTS:
        raise UsageError(f"a choice must be of 1 to {MOST_CONSTANTS} texts, got {len(texts)}")
    if not all(texts):
        raise UsageError("a choice must not hold an empty text")
    return "(?:" + "|".join(_SPECIAL.sub(r"\\\g<0>", text) for text in texts) + ")"


def lark_of(grammar: str) -> str:
    """Return a grammar in `llguidance`'s Lark dialect, from that or from GBNF.

    GBNF is llama.cpp's (https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md); its rules begin at
    `root`, those of Lark at `start`.

    Raises:
        UsageError: it is neither, is too large to be translated, or `llguidance` is not installed.

    """
    if _LARK.search(grammar):
        return grammar
    try:
        from llguidance.gbnf_to_lark import gbnf_to_lark
    except ImportError as error:
        raise UsageError("grammars in GBNF need the package llguidance: pip install llguidance") from error
    rules = grammar.count("::=")
    if rules * len(grammar) > _MOST_WORK:
        raise UsageError(
            f"a grammar in GBNF of {rules} rules and {len(grammar)} characters takes too long to translate "
            f"(their product may be {_MOST_WORK:,}); write it in Lark"
        )
    try:
        return gbnf_to_lark(_PART.sub(_without_numbers, grammar))
    except RecursionError as error:
        raise UsageError("the grammar is not understood: it is nested too deep") from error
    except Exception as error:  # it raises no class of its own for half of what can be wrong
        problem = " ".join(str(error).split())[:200]
        raise UsageError(f"the grammar is neither Lark (with a rule start:) nor GBNF: {problem}") from error


def _without_numbers(part: re.Match[str]) -> str:
    """Return a part without the escapes that are lost in translation: what it makes of them, Lark does not take."""
    if part[0].startswith("#"):
        return part[0]
    return _ESCAPED.sub(_in_literal if part[0].startswith('"') else _in_class, part[0])


def _in_literal(escape: re.Match[str]) -> str:
    letter = escape[4] or _letter(escape)
    if not letter:
        return escape[0]
    if letter < " " and letter not in _IN_LITERALS:
        raise ValueError(f"{escape[0]} is no character that an answer can have")
    return _IN_LITERALS.get(letter, letter)


def _in_class(escape: re.Match[str]) -> str:
    letter = _letter(escape)
    if not letter:
        return escape[0]
    return f"\\x{ord(letter):02x}" if ord(letter) < 0x80 else letter


def _letter(escape: re.Match[str]) -> str:
    """Return the character whose number an escape has; nothing for escapes of other kinds."""
    digits = escape[1] or escape[2] or escape[3]
    if not digits:
        return ""
    number = int(digits, 16)
    if number > 0x10FFFF or 0xD800 <= number < 0xE000:
        raise ValueError(f"{escape[0]} is no character")
    return chr(number)
