"""`phi3-onnx bench`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from ..configs.sizes import size
from .answering import check_speculation
from .progress import progress_line
from .provider_library import provider_library
from .screen import notice, warn_of_clashing_wheels
from .table import print_lines, table_lines

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from ..evaluate.bench import Bench
    from ..evaluate.tables import Table
    from ..runtime.engines.load import EngineChoice

_Form = Literal["table", "md", "csv", "json"]
_Found = TypeVar("_Found")
_POLL_SECONDS = 0.2


class _Counts(click.ParamType):
    """Numbers with commas between."""

    name = "counts"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isascii() and part.isdigit() and int(part) >= self._least for part in parts):
            self.fail(f"{value!r} must be numbers of {self._least} or more, such as 128 or 128,512", param, ctx)
        return tuple(map(int, parts))


_COUNTS, _DEPTHS = _Counts(1), _Counts(0)


@click.command()
@click.argument("packages", nargs=-1, required=True)
@click.option("--provider", default="auto", show_default=True, help="Where to run: auto, cpu, cuda, dml.")
@provider_library
@click.option("--threads", type=click.IntRange(1), help="Threads on the CPU.  [default: physical cores]")
@click.option(
    "--engine", type=click.Choice(["auto", "ort", "genai"]), default="auto", show_default=True, help="As chat."
)
@click.option(
    "-p", "--prompt", type=_COUNTS, default="512", show_default=True, help="Tokens to prefill; 128,512 is both."
)
@click.option("-n", "--decode", type=_COUNTS, default="48", show_default=True, help="Tokens to run one by one.")
@click.option("-d", "--depth", type=_DEPTHS, metavar="COUNTS", help="Tokens in the cache before either.  [default: 0]")
@click.option("--clients", type=_COUNTS, metavar="COUNTS", help="Texts to decode at a time, such as 1,2,4,8.")
@click.option(
    "-o", "--output", type=click.Choice(["table", "md", "csv", "json"]), help="Print every figure with its spread."
)
@click.option(
    "--speculate",
    callback=check_speculation,
    default="off",
    show_default=True,
    metavar="auto|off|N",
    help="Time an answer that repeats its prompt with drafts and without, too; N: always so many tokens.",
)
@click.option("--draft", metavar="PACKAGE", help="With --speculate: the smaller model that drafts, as chat.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Repetitions; medians count.")
@click.option(
    "--against",
    multiple=True,
    metavar="MODEL",
    help="Time this in turn with the packages: another package, a .gguf file (llama.cpp), a folder for OpenVINO. May "
    "be repeated.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw every speed into a .svg or .png file.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each package.")
def command(
    packages: tuple[str, ...],
    provider: str,
    threads: int | None,
    engine: "EngineChoice",
    prompt: tuple[int, ...],
    decode: tuple[int, ...],
    depth: tuple[int, ...] | None,
    clients: tuple[int, ...] | None,
    output: _Form | None,
    speculate: str,
    draft: str | None,
    repeat: int,
    against: tuple[str, ...],
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure how fast packages prefill and decode, and what memory they take.

    Each package runs in a process of its own, so that its peak memory is its own. Several lengths, --depth, --clients,
    --plot and -o measure every combination in turn, and print medians with their spread. With --against all models stay
    loaded and have their turns round by round; ratios are those of the first package to each other, with their spread.
    """
    from ..configs import UsageError, find_package
    from ..evaluate.bench import bench

    options: dict[str, Any] = {"provider": provider, "engine": engine, "threads": threads, "repeat": repeat}
    if against:
        if plot is not None:
            raise UsageError("--plot draws speeds, --against gives ratios: leave one of them out")
        if depth or clients or speculate != "off" or len(prompt) > 1 or len(decode) > 1:
            raise UsageError(
                "--against compares one prompt length and one number of tokens: leave out --depth, --clients and "
                "--speculate"
            )
        warn_of_clashing_wheels(provider)
        how = {"provider": provider, "engine": engine, "threads": threads}
        _compare(
            (*packages, *against), how, min(prompt), min(decode), repeat, output or ("json" if as_json else "table")
        )
        return
    folders = [find_package(package) for package in packages]
    warn_of_clashing_wheels(provider)
    if plot is not None:
        from .plot import check_plot

        check_plot(plot)
    if draft and speculate == "off":
        raise UsageError("--draft needs --speculate auto, or a number of tokens")
    if depth or clients or output or plot or speculate != "off" or len(prompt) > 1 or len(decode) > 1:
        from ..evaluate.sweep import sweep
        from ..evaluate.tables import table_of

        options |= {"prompts": prompt, "decodes": decode, "depths": depth or (0,), "texts": clients or ()}
        options |= {"speculate": speculate, "draft": find_package(draft) if draft else None}
        sweeps = [_apart(sweep, folder, options) for folder in folders]
        if plot is not None:
            from .plot import plot_speeds

            plot_speeds(sweeps, plot)
            notice(f"drew {plot}")
        _print(table_of(sweeps), output or ("json" if as_json else "table"))
        return
    options |= {"prompt_tokens": min(prompt), "decoded_tokens": min(decode)}
    found: list[Bench] = []
    for folder in folders:
        done = _apart(bench, folder, options)
        found.append(done)
        if as_json:
            table = asdict(done)
            click.echo(json.dumps({"package": table.pop("package"), **table.pop("speed"), **table}))
    if not as_json:
        _print_speeds(found)


def _print_speeds(found: "Sequence[Bench]") -> None:
    rows = [
        (
            done.package,
            f"{done.speed.prefill_tokens_per_second:.0f}",
            f"{done.speed.decode_tokens_per_second:.1f}",
            "" if done.read_share is None else f"{done.read_share:.0%}",
            f"{done.load_seconds:.2f} s",
            size(done.peak_memory_bytes),
            f"{done.speed.provider} ({done.speed.engine})",
        )
        for done in found
    ]
    headings = ("package", "prefill", "decode", "of reads", "load", "memory", "on")
    speed = found[0].speed
    note = (
        f"prefill of {speed.prompt_tokens} tokens and decode of {speed.decoded_tokens} in tokens/s, medians of "
        f"{speed.repeat}; of reads: the part of plain reads of memory that decoding reached"
    )
    print_lines([*table_lines(rows, headings, right=range(1, 6)), note])


def _compare(names: Sequence[str], how: Mapping[str, Any], prompt: int, decode: int, rounds: int, form: _Form) -> None:
    from ..evaluate.contest.contenders import Entry
    from ..evaluate.contest.contest import contest, contest_table

    entries = [Entry.named(name, **how) for name in names]
    with progress_line(still=True) as progress:
        results = contest(entries, prompt_tokens=prompt, decoded_tokens=decode, rounds=rounds, progress=progress)
    _print(contest_table(results), form)


def _apart(work: Callable[..., _Found], folder: Path, options: Mapping[str, Any]) -> _Found:
    """Measure a package in a process of its own, and show what it reports."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    spawning = get_context("spawn")
    here, there = spawning.Pipe(duplex=False)
    with progress_line(still=True) as progress:
        pool = ProcessPoolExecutor(1, mp_context=spawning, initializer=_report_to, initargs=(there,))
        with pool, here, there:
            found = pool.submit(_measure, work, folder, options)
            while not found.done():
                if here.poll(_POLL_SECONDS):
                    progress(*here.recv())
            return found.result()


# What follows runs in the process that measures, which keeps its end of the pipe here.
_reports: list["Connection"] = []


def _report_to(there: "Connection") -> None:
    _reports.append(there)


def _measure(work: Callable[..., _Found], folder: Path, options: Mapping[str, Any]) -> _Found:
    return work(folder, **options, progress=lambda *report: _reports[0].send(report))


def _print(table: "Table", form: _Form) -> None:
    if form == "table":
        print_lines([*table_lines(table.cells(), table.columns), *table.notes])
        return
    click.echo(table.written(form))
    if form == "csv":  # which has no place for them
        for note in table.notes:
            notice(note)
