"""Everything that is wrong with an input, said in one line."""

from collections.abc import Sequence

_SHOWN = 5


def summarize(problems: Sequence[str]) -> str:
    """Return the first problems, and how many more there are."""
    shown = "; ".join(problems[:_SHOWN])
    more = len(problems) - _SHOWN
    return f"{shown}; and {more} more problems" if more > 0 else shown
