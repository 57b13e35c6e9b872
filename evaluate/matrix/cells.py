"""What a run of the validation matrix found: packages, cells (target x provider), cross-checks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...configs import AdapterEntry, Target
from ..bench import Speed
from ..parity.result import Row, Verification
from .cross_check import CrossCheck

Outcome = Literal["pass", "fail", "not run"]


@dataclass(frozen=True)
class PackageReport:
    """One target's package: made or found, and what of it is the same on every provider."""

    made_as: Target
    folder: Path | None
    """None where it could not be made."""
    exported: bool
    """Whether this run made it; otherwise it was there already."""
    size: int
    """Bytes of all its files."""
    rows: tuple[Row, ...]
    """`weights` and `attention`."""
    error: str | None = None
    """Why there is no package, or why it is not the one that was asked for."""

    @property
    def target(self) -> str:
        """The target's name."""
        return self.made_as.name

    @property
    def passed(self) -> bool:
        """Whether the package is there and no row is out of its threshold."""
        return self.error is None and all(row.passed is not False for row in self.rows)


@dataclass(frozen=True)
class Cell:
    """One package on one provider."""

    target: str
    provider: str
    """Our name: `cpu`, `cuda`, `dml`."""
    outcome: Outcome
    reason: str | None
    """Why it failed or did not run."""
    verification: Verification | None = None
    speed: Speed | None = None
    speed_note: str | None = None
    """Why no speed was measured."""


@dataclass(frozen=True)
class Matrix:
    """All that a run found."""

    source: str
    revision: str | None
    model: str
    machine: str
    packages: tuple[PackageReport, ...]
    cells: tuple[Cell, ...]
    cross_checks: tuple[CrossCheck, ...]
    required: tuple[str, ...]
    versions: dict[str, str]
    created: str
    """UTC, ISO 8601."""
    seconds: float
    adapter: AdapterEntry | None = None
    """What was merged into the weights of `source`."""

    @property
    def failures(self) -> tuple[str, ...]:
        """A line for each thing that failed; empty where all is well."""
        found = [f"{p.target}: {reason}" for p in self.packages if (reason := package_failure(p))]
        found += [f"{c.target} on {c.provider}: {c.reason}" for c in self.cells if c.outcome == "fail"]
        return (*found, *(str(check) for check in self.cross_checks if check.passed is False))

    @property
    def providers(self) -> tuple[str, ...]:
        """The table's columns."""
        return tuple(dict.fromkeys(cell.provider for cell in self.cells))

    def cell(self, target: str, provider: str) -> Cell:
        """Return one cell of the table."""
        return next(cell for cell in self.cells if (cell.target, cell.provider) == (target, provider))


def package_failure(package: PackageReport) -> str | None:
    """Return why a package fails wherever it runs; None where it does not."""
    if package.error is not None:
        return package.error
    return "; ".join(f"{row.name}: {row.detail}" for row in package.rows if row.passed is False) or None
