"""Tables of the verbs: one line a row in a pipe, as wide as its cells; folded on a terminal, where nothing is cut."""

import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from .screen import console, is_terminal

if TYPE_CHECKING:
    from rich.text import Text


class Colored(NamedTuple):
    """A cell with one of rich's styles."""

    text: str
    style: str


Cell = str | Colored

_GAP = 2
_LEAST_OF_LAST = 24
"""The last column has the long texts; it stays as wide as this, or as its cells where they are shorter."""
_BREAK = re.compile(r"\s*[\n\r\t\v\f]\s*")


def table_lines(
    rows: Sequence[Sequence[Cell]],
    headings: Sequence[str] = (),
    *,
    right: Collection[int] = (),
    first: int = 0,
    indent: int = 0,
) -> list[str]:
    """Return a table's lines.

    A terminal too narrow for the longest word of each column gets a line for each cell, under its heading's name.

    Args:
        rows: Cells; all rows have as many.
        headings: Names of the columns; a table without has rows alone.
        right: Columns whose cells end below each other.
        first: Least width of the first column, by which several tables have one edge.
        indent: Spaces before each line.

    """
    cells = [[_text(cell) for cell in row] for row in ([headings] if headings else []) + list(rows)]
    if not cells:
        return []
    widths = [max(text.cell_len for text in column) for column in zip(*cells, strict=True)]
    widths[0] = max(widths[0], first)
    if is_terminal():
        words = [max(map(_longest_word, column)) for column in zip(*cells, strict=True)]
        space = shutil.get_terminal_size().columns - indent - _GAP * (len(widths) - 1)
        if not _fold(widths, words, space):
            return [_colored(line) for line in _records(cells, bool(headings))]
    return [" " * indent + _colored(line) for row in cells for line in _row_lines(row, widths, right)]


def print_lines(lines: Sequence[str]) -> None:
    """Print lines, of tables and others, to stdout; with their colours where it has them."""
    click.echo("\n".join(line.rstrip() for line in lines), color=console().is_terminal)


def _text(cell: Cell) -> "Text":
    from rich.text import Text

    text, style = cell if isinstance(cell, Colored) else (cell, "")
    return Text(_BREAK.sub(" ", text), style)


def _longest_word(text: "Text") -> int:
    from rich.cells import cell_len

    return max(map(cell_len, text.plain.split()), default=0)


def _fold(widths: list[int], words: Sequence[int], space: int) -> bool:
    """Narrow columns until they fit, the last one first, then the widest; say whether they do.

    Words of the last column are broken where there is no room for the longest of them.
    """
    least = min(widths[-1], _LEAST_OF_LAST)
    if sum(words) <= space:
        least = max(least, words[-1])
    widths[-1] = min(widths[-1], max(least, space - sum(widths[:-1])))
    while sum(widths) > space:
        wide = [index for index, width in enumerate(widths[:-1]) if width > words[index]]
        if not wide:
            return False
        widths[max(wide, key=widths.__getitem__)] -= 1
    return True


def _row_lines(row: Sequence["Text"], widths: Sequence[int], right: Collection[int]) -> Iterator["Text"]:
    from itertools import zip_longest

    from rich.text import Text

    screen = console()
    folded = [text.wrap(screen, max(width, 1), overflow="fold") for text, width in zip(row, widths, strict=True)]
    for pieces in zip_longest(*folded):
        line = Text()
        for index, (piece, width) in enumerate(zip(pieces, widths, strict=True)):
            cell = piece or Text()
            cell.rstrip()
            space = " " * (width - cell.cell_len)
            line.append(" " * _GAP if index else "").append(space if index in right else "")
            line.append_text(cell).append("" if index in right else space)
        line.rstrip()
        yield line


def _records(cells: Sequence[Sequence["Text"]], headed: bool) -> Iterator["Text"]:
    from rich.text import Text

    names = [text.plain for text in cells[0]] if headed else [""] * len(cells[0])
    for number, row in enumerate(cells[1:] if headed else cells):
        if number and len(row) > 2:
            yield Text()
        for index, (name, text) in enumerate(zip(names, row, strict=True)):
            if text.plain:
                yield Text("  " if index else "").append(f"{name}: " if name else "").append_text(text)


def _colored(text: "Text") -> str:
    """Return a line as it is written; the terminal breaks it where it is too long for it."""
    screen = console()
    with screen.capture() as capture:
        screen.print(text, soft_wrap=True, end="")
    return capture.get()
