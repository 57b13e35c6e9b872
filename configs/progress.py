"""Telling whoever waits what is being done, and how much of it is through."""

from typing import Protocol


class Progress(Protocol):
    """What is called while something takes long."""

    def __call__(self, what: str, done: int = 0, total: int = 0, unit: str = "", /) -> None:
        """Take a report.

        Args:
            what: what is being done, such as `writing`.
            done: how much of it is through.
            total: how much there is in all; 0 where nobody knows.
            unit: of both numbers, such as `bytes`, `layers` or `tokens`.

        """
        ...


def silent(_what: str, _done: int = 0, _total: int = 0, _unit: str = "", /) -> None:
    """Report to nobody."""


def labelled(progress: Progress, label: str) -> Progress:
    """Return a `Progress` that says before each report whose work it is."""

    def report(what: str, done: int = 0, total: int = 0, unit: str = "", /) -> None:
        progress(f"{label}: {what}", done, total, unit)

    return report


class Counter:
    """Reports one kind of work as its parts are done."""

    def __init__(self, progress: Progress, what: str, total: int, unit: str) -> None:
        self._report = progress
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self.add(0)

    def add(self, count: int) -> None:
        """Count what has been done since the last call."""
        self._done += count
        self._report(self._what, self._done, self._total, self._unit)
