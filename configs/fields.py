"""The values of a JSON file that someone else wrote, each checked when it is read: kind, bounds, and its name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import PackageError, Phi3OnnxError

MOST_TOKENS = 1 << 30
"""No vocabulary, text or file is that long; what a file states may become a list of as many entries."""
_MOST_ENTRIES = 1024
"""Of a list of tokens or options."""


@dataclass(frozen=True)
class Fields:
    """A JSON object of a file. Each method reads one key, and raises `error` where its value is of another kind.

    A key that is missing, or null, has the default; where none is given, it has to be there.
    """

    table: Mapping[str, Any]
    where: str
    """The file, and within it the object, for messages."""
    error: type[Phi3OnnxError] = PackageError

    def fields(self, key: str, *, optional: bool = False) -> "Fields":
        """Return an object."""
        value = self._get(key, {} if optional else None)
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return Fields(value, f"{self.where}: {key}", self.error)

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def file_name(self, key: str) -> str:
        """Return the name of a file that lies beside this one."""
        name = self.text(key)
        if name in ("", ".", "..") or any(mark in name for mark in ("/", "\\", ":", "\0")) or not _is_text(name):
            raise self._wrong(key, "the name of a file of this folder")
        return name

    def texts(self, key: str) -> Mapping[str, str]:
        """Return an object of texts; it may be empty, and other values in it are left out."""
        return {name: value for name, value in self.fields(key).table.items() if isinstance(value, str)}

    def count(self, key: str, default: int | None = None, *, most: int = MOST_TOKENS) -> int:
        """Return a positive whole number."""
        value = self._get(key, default)
        if not _is_whole(value) or not 0 < value <= most:
            raise self._wrong(key, f"a positive whole number up to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number."""
        value = self._get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not _is_finite(value):
            raise self._wrong(key, "a number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def tokens(self, key: str) -> tuple[int, ...]:
        """Return token ids, of a list or a single one; none where there is nothing."""
        value = self.table.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if len(values) > _MOST_ENTRIES or not all(_is_whole(token) and 0 <= token < MOST_TOKENS for token in values):
            raise self._wrong(key, "token ids")
        return tuple(values)

    def token(self, key: str) -> int | None:
        """Return a token id, or nothing."""
        tokens = self.tokens(key)
        if len(tokens) > 1:
            raise self._wrong(key, "a token id")
        return tokens[0] if tokens else None

    def entries(self, key: str) -> list["Fields"]:
        """Return a list of objects; empty where there is nothing."""
        value = self._get(key, [])
        if not isinstance(value, list) or len(value) > _MOST_ENTRIES or not all(isinstance(e, dict) for e in value):
            raise self._wrong(key, "a list of objects")
        return [Fields(entry, f"{self.where}: {key}", self.error) for entry in value]

    def _get(self, key: str, default: Any) -> Any:
        value = self.table.get(key)
        return default if value is None else value

    def _wrong(self, key: str, expected: str) -> Phi3OnnxError:
        if key not in self.table:
            return self.error(f"{self.where}: {key} is missing, expected {expected}")
        return self.error(f"{self.where}: {key} must be {expected}, got {shown(self.table[key])}")


def shown(value: Any) -> str:
    """Return a value of a file for a message: short, however long or deep it is."""
    if isinstance(value, list | dict) and value:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    try:
        return f"{value!r:.80}"
    except ValueError:  # of a whole number of thousands of digits
        return "a number of thousands of digits"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
