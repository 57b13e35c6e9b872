"""`phi3-onnx matrix`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..configs import OutputError, Phi3OnnxError
from .progress import progress_line
from .provider_library import provider_library
from .screen import warn_of_clashing_wheels
from .table import Colored, print_lines, table_lines

if TYPE_CHECKING:
    from ..evaluate.matrix.cells import Matrix

_FILE = click.Path(path_type=Path, dir_okay=False)


class MatrixError(Phi3OnnxError):
    """A cell, a package or a cross-check failed."""


def _names(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> list[str]:
    # Given several times or with commas, which is shorter in a workflow file.
    return [name for value in values for name in value.replace(",", " ").split()]


@click.command()
@click.argument("source")
@click.option("-t", "--targets", multiple=True, callback=_names, help="Targets, with commas.  [default: all]")
@click.option(
    "-p",
    "--providers",
    multiple=True,
    callback=_names,
    help="Providers, with commas.  [default: those that the targets are for, and those that run here]",
)
@provider_library
@click.option("--require", multiple=True, callback=_names, help="Providers for which not to run is a failure.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the packages.  [default: the store]")
@click.option("--revision", help="Commit, tag or branch of a hub checkpoint.")
@click.option("--adapter", metavar="DIR", help="PEFT adapter (LoRA, DoRA) to merge into it: a folder or a hub id.")
@click.option("--force", is_flag=True, help="Export again what is already there.")
@click.option(
    "--steps", type=click.IntRange(min=1), default=64, show_default=True, help="Greedy tokens of each conversation."
)
@click.option("--speed/--no-speed", default=True, help="Measure tokens per second.  [default: speed]")
@click.option("--json", "json_file", type=_FILE, help="Write everything that was measured.")
@click.option("--junit", "junit_file", type=_FILE, help="Write JUnit XML: a case for each row.")
@click.option("--markdown", "markdown_file", type=_FILE, help="Add the table to a file, such as a CI summary.")
def command(
    source: str,
    targets: list[str],
    providers: list[str],
    require: list[str],
    output: Path | None,
    revision: str | None,
    adapter: str | None,
    force: bool,
    steps: int,
    speed: bool,
    json_file: Path | None,
    junit_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Verify every target of a checkpoint on every provider, and packages against each other.

    Packages that are missing are made; those that are there are used if they were made of SOURCE. Every graph also runs
    on the CPU, which checks its arithmetic on machines without a GPU, and says so. Exit code 1 if anything failed.
    """
    from ..configs.requirements import require_export

    require_export()
    from ..evaluate.matrix.plan import plan_matrix
    from ..evaluate.matrix.run import run_matrix
    from ..export import open_checkpoint

    plan = plan_matrix(targets, providers, require, output=output, force=force, steps=steps, speed=speed)
    for file in (json_file, junit_file, markdown_file):
        _check_writable(file)
    checkpoint = open_checkpoint(source, revision=revision, adapter=adapter)
    warn_of_clashing_wheels("auto")  # every graph runs on the CPU too
    with progress_line() as progress:
        matrix = run_matrix(checkpoint, plan, progress=progress)
    _print(matrix)
    _write(matrix, json_file, junit_file, markdown_file)
    if matrix.failures:
        raise MatrixError(f"{len(matrix.failures)} failed: {'; '.join(matrix.failures)}")


def _check_writable(file: Path | None) -> None:
    if file is not None and not file.absolute().parent.is_dir():
        raise OutputError(f"{file.absolute().parent} does not exist, so {file} cannot be written")


def _write(matrix: "Matrix", json_file: Path | None, junit_file: Path | None, markdown_file: Path | None) -> None:
    from ..evaluate.matrix.report import to_dict, to_junit, to_markdown

    try:
        if json_file:
            json_file.write_text(json.dumps(to_dict(matrix), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if junit_file:
            junit_file.write_text(to_junit(matrix), encoding="utf-8")
        if markdown_file:  # a CI summary is a file that several steps add to
            with markdown_file.open("a", encoding="utf-8") as file:
                file.write(to_markdown(matrix))
    except OSError as error:
        raise OutputError(f"{error.filename} cannot be written: {error.strerror}") from error


def _print(matrix: "Matrix") -> None:
    from ..evaluate.matrix.report import HEADINGS, cross_rows, table_rows, verdict

    colors = {"pass": "green", "fail": "bold red", "not run": "yellow"}
    rows = [
        (target, provider, Colored(outcome, colors[outcome]), *rest)
        for target, provider, outcome, *rest in table_rows(matrix)
    ]
    lines = table_lines(rows, (*HEADINGS, ""))
    if matrix.cross_checks:
        lines += ["", *table_lines(cross_rows(matrix), ("package", "against", "mean KL", "top-1", "at most", ""))]
    print_lines([*lines, "", f"{verdict(matrix)}; {matrix.seconds:.0f} s on {matrix.machine}"])
