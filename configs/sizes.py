"""Numbers of bytes in words: one form for disk and memory, in powers of 1000."""

import re

from .errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_size(text: str) -> int:
    """Return the bytes that a person means: `512MB`, `1.5 GB`, `0`.

    Raises:
        UsageError: it is no size.

    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text, re.IGNORECASE)
    if not found:
        raise UsageError(f"a size must be a number with a unit, such as 500MB or 2GB, got {text!r}")
    return round(float(found[1]) * _UNITS[found[2].lower()])


def size(count: float) -> str:
    """Return a number of bytes as people read it: `512 B`, `93.6 MB`, `2.49 GB`."""
    if abs(count) < 999.5:
        return f"{count:.0f} B"
    units = iter(("kB", "MB", "GB", "TB", "PB"))
    unit = next(units)
    count /= 1000
    while abs(count) >= 999.5 and (larger := next(units, None)):
        unit, count = larger, count / 1000
    digits = 2 if abs(count) < 9.995 else 1 if abs(count) < 99.95 else 0
    return f"{count:.{digits}f} {unit}"
