"""Telling whoever waits what is being done."""

from collections.abc import Callable

Notify = Callable[[str], None]
"""Called with a line of progress."""


def silent(_: str) -> None:
    """Report to nobody."""
