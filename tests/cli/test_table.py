"""Tables of the verbs: a pipe gets one line a row with every cell, a terminal of any width loses none."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from phi3_onnx.cli import bench, root, table
from phi3_onnx.cli.table import Colored, print_lines, table_lines
from phi3_onnx.configs import targets
from phi3_onnx.evaluate.sweep import Figure, Sweep
from phi3_onnx.evaluate.tables import table_of

from .conftest import Run

HEADINGS = ("name", "size", "why")
LONG = "the quick brown fox jumps over a lazy dog and /a/path/that/is/longer/than/any/terminal/here/of/ours 世界 " * 6
ROWS = [
    ("first/one", "1.5 GB", LONG.strip()),
    ("second", "20 MB", Colored("FAILED", "bold red")),
    ("third", "", "[b]x"),
]
WIDTHS = (10, 20, 30, 40, 60, 80, 120, 200)


def on_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(table, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")


def characters(texts: Sequence[str | Colored]) -> str:
    return "".join(sorted("".join("".join(cell.text if isinstance(cell, Colored) else cell for cell in texts).split())))


def cell_len(text: str) -> int:
    return len(text) + len(re.findall("[世界]", text))


def test_a_pipe_gets_a_line_a_row_as_wide_as_its_cells() -> None:
    lines = table_lines(ROWS, HEADINGS, right=(1,))
    assert lines[0].rstrip() == "name         size  why"
    assert lines[1].rstrip() == f"first/one  1.5 GB  {LONG.strip()}"
    assert [line.rstrip() for line in lines[2:]] == ["second      20 MB  FAILED", "third              [b]x"]


def test_a_break_in_a_cell_breaks_no_line() -> None:
    assert [line.rstrip() for line in table_lines([("a\n  b\tc", "d"), ("e", "f")])] == ["a b c  d", "e      f"]
    assert table_lines([]) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_terminal_of_any_width_loses_nothing(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    on_terminal(monkeypatch, width)
    lines = table_lines(ROWS, HEADINGS, right=(1,))
    if width < 43:  # a line for each cell
        assert lines[0] == "name: first/one" and lines[1] == "  size: 1.5 GB" and lines[2] == f"  why: {LONG.strip()}"
        assert lines[3:] == ["", "name: second", "  size: 20 MB", "  why: FAILED", "", "name: third", "  why: [b]x"]
    else:
        assert max(map(cell_len, lines)) <= width
        assert characters(lines) == characters([*HEADINGS, *(cell for row in ROWS for cell in row)])
        assert lines[0].split() == list(HEADINGS)
        folded = [line for line in lines if line.startswith(" " * 19)]
        assert folded and max(map(cell_len, folded)) > width - 25  # the long text has the room that is left


def test_the_last_column_is_folded_first_and_the_widest_next(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("one", "some words of this cell", "last words " * 4)]
    on_terminal(monkeypatch, 58)
    assert "some words of this cell" in table_lines(rows)[0]
    on_terminal(monkeypatch, 44)
    first, second, *_ = table_lines(rows)
    assert first.startswith("one  some words of  ") and second.startswith("     this cell  ")


def test_a_word_is_broken_where_nothing_else_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    word = "a-name-of-thirty-one-characters"
    rows = [("one", "some words of this cell", f"last words {word}")]
    on_terminal(monkeypatch, 50)
    assert any(line.endswith(f" {word}") for line in table_lines(rows))
    on_terminal(monkeypatch, 40)
    assert not any(word in line for line in table_lines(rows)) and max(map(len, table_lines(rows))) <= 40


def test_colors_are_of_the_cell_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_lines(table_lines(ROWS[1:2] * 2))
    assert capsys.readouterr().out == "second  20 MB  \x1b[1;31mFAILED\x1b[0m\n" * 2
    monkeypatch.setenv("NO_COLOR", "1")
    print_lines(table_lines(ROWS[1:2]))
    assert capsys.readouterr().out == "second  20 MB  FAILED\n"


@pytest.mark.parametrize("width", [40, 80, 160])
def test_targets_on_a_terminal_are_whole(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    on_terminal(monkeypatch, width)
    found = CliRunner().invoke(root, ["targets"]).output
    for target in targets().values():
        for text in (target.name, target.provider, *target.weights.split(), *target.description.split()):
            assert text in found


def test_list_has_the_same_columns_in_a_pipe_and_on_a_wide_terminal(
    run: Run, tiny_package: Callable[..., Path], isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model-of-a-long-name/cpu-fp32", "m/cpu-fp32"):
        (isolated / "packages" / name).parent.mkdir(parents=True, exist_ok=True)
        (isolated / "packages" / name).symlink_to(tiny_package("plain"))
    piped = run("list").out
    names = [row["name"] for row in json.loads(run("list", "--json").out)]
    assert [re.split(r" {2,}", line)[0] for line in piped.splitlines()] == ["package", *names]
    assert len(names) == 2
    assert len({line.index(word) for line, word in zip(piped.splitlines(), ("made", "20", "20"), strict=True)}) == 1
    on_terminal(monkeypatch, 120)
    assert run("list").out == piped


@pytest.mark.parametrize("width", [60, 100, 300])
def test_the_table_of_bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int) -> None:
    figures = [
        Figure("prefill", 128, 0, 1, 300.5, 290.0, 310.0, 0.43),
        Figure("together", 48, 512, 8, 99.0, 98.0, 100.0),
    ]
    measured = table_of([Sweep("a, b/cpu", "cpu", "engine", 1.0, 0.5, 300, 2e10, 10**8, "", "a prompt", figures)])
    bench._print(measured, "table")  # pyright: ignore[reportPrivateUsage]
    piped = capsys.readouterr().out.splitlines()
    assert piped[1].startswith("a, b/cpu  prefill   128     0      1      300.5              290.0  310.0  0.43")
    assert piped[4:] == ["plain reads: 20.0 GB/s; 100.0 MB of weights a token", "energy: no counter can be read here"]
    on_terminal(monkeypatch, width)
    bench._print(measured, "table")  # pyright: ignore[reportPrivateUsage]
    shown = capsys.readouterr().out.splitlines()
    if width == 300:
        assert shown == piped
    else:
        assert shown[:3] == ["package: a, b/cpu", "  kind: prefill", "  tokens: 128"]
        assert "  peak_memory_bytes: 300" in shown and shown[-2:] == piped[-2:]
