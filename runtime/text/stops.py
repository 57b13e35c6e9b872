"""Stop strings: found wherever they end, and never shown, though they come in pieces."""

from collections.abc import Sequence

from ...configs import UsageError


class StopFilter:
    """Passes text on, holds back what may be the start of a stop string, and ends at the first one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Take the stop strings.

        Raises:
            UsageError: one of them is empty.

        """
        if any(not stop for stop in stops):
            raise UsageError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that was found first; nothing is passed on from then."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.found is not None

    def push(self, text: str) -> str:
        """Take the next piece of text and return what can be shown now."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        self._held += text
        found = [(position, stop) for stop in self._stops if (position := self._held.find(stop)) >= 0]
        if found:
            # The first in the text; of several there, the one that was named first.
            position, self.found = min(found, key=lambda entry: entry[0])
            shown, self._held = self._held[:position], ""
            return shown
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """Return what was held back, at the end of the text."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        # The longest end of the text that is a proper beginning of this stop string.
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
