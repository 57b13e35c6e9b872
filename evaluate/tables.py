"""Figures in rows, as Markdown, CSV or JSON."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .sweep import Sweep

Form = Literal["md", "csv", "json"]


@dataclass(frozen=True)
class Table:
    """Rows under names, what has to be said of them, and all of it as JSON."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str]
    whole: Any

    def cells(self) -> list[list[str]]:
        """Return the rows as texts."""
        return [["" if value is None else str(value) for value in row] for row in self.rows]

    def written(self, form: Form) -> str:
        """Return it in a form; `csv` has the rows alone, `json` all that is known."""
        cells = [list(self.columns), *self.cells()]
        return _FORMS[form](cells, self.notes) if form != "json" else json.dumps(self.whole, indent=1)


def _markdown(cells: Sequence[Sequence[str]], notes: Iterable[str]) -> str:
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *(f"\n{note}" for note in notes)])


def _csv(cells: Sequence[Sequence[str]], notes: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue().rstrip("\n")


_FORMS: Mapping[str, Callable[[Sequence[Sequence[str]], Iterable[str]], str]] = {
    "md": _markdown,
    "csv": _csv,
}

_OF_FIGURES = (
    "kind",
    "tokens",
    "depth",
    "texts",
    "tokens_per_second",
    "least",
    "most",
    "first_token_seconds",
    "read_share",
    "joules_per_token",
    "accepted_share",
)
_OF_SWEEPS = ("load_seconds", "cold_first_token_seconds", "peak_memory_bytes")


def table_of(sweeps: Sequence[Sweep]) -> Table:
    """Return the figures of packages, a row each."""
    rows = [
        [
            sweep.package,
            *(getattr(figure, name) for name in _OF_FIGURES),
            *(getattr(sweep, name) for name in _OF_SWEEPS),
        ]
        for sweep in sweeps
        for figure in sweep.figures
    ]
    notes = [note for sweep in sweeps for note in _notes(sweep)]
    return Table(("package", *_OF_FIGURES, *_OF_SWEEPS), rows, notes, [asdict(sweep) for sweep in sweeps])


def _notes(sweep: Sweep) -> Iterable[str]:
    yield f"{sweep.package} on {sweep.provider} ({sweep.engine}); warm-up: {sweep.warm_up}"
    if sweep.read_bandwidth:
        weights = f"{sweep.weight_bytes / 1e6:.1f} MB of weights a token" if sweep.weight_bytes else "weights not known"
        yield f"plain reads: {sweep.read_bandwidth / 1e9:.1f} GB/s; {weights}"
    yield f"energy: {sweep.energy or 'no counter can be read here'}"
