"""What a comparison found, whatever was compared."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What came of a series of comparisons."""

    compared: int
    differences: tuple[str, ...]
    """A line for each comparison that failed."""
    notes: tuple[str, ...] = ()
    """What was compared, or why something was not."""

    @property
    def share(self) -> float:
        """Share of the comparisons that found both sides equal, 0 to 1."""
        return 1 - len(self.differences) / self.compared if self.compared else 1.0
