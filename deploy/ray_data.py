"""Answers for a whole data set, offline, with Ray Data: an actor for each copy of the model, resumable.

    python -m phi3_onnx.deploy.ray_data PACKAGE INPUT OUTPUT.jsonl --replicas 2

INPUT is a JSONL or Parquet file, or a folder of them, in any place that Ray Data reads from. Each row has an `id` and a
`prompt` or `messages`; other columns with the name of an option (`max_tokens`, `seed` ...) are that row's own. OUTPUT
gets one line a row, in the order of completion; a run that was ended continues with the rows that are not there. What
is wrong with a row is its line's `error`.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from phi3_onnx.configs import Phi3OnnxError, UsageError
from phi3_onnx.configs.options import OPTIONS
from phi3_onnx.runtime.batch import DEFAULT_BATCH, BatchPrompt, answer_all
from phi3_onnx.runtime.model import load

if TYPE_CHECKING:
    from ray.data import Dataset  # pyright: ignore[reportMissingImports]

Row = Mapping[str, Any]
_LINE = "text"
"""The column of `ray.data.read_text`: no reader of types makes an option's 8 an 8.0, or what a row lacks a NaN."""


class Answerer:
    """One copy of the model, in an actor."""

    def __init__(self, package: str, provider: str, threads: int | None, side_by_side: int, options: Row) -> None:
        """Load it."""
        self._model = load(package, provider=provider, threads=threads)
        self._side_by_side = side_by_side
        self._options = options

    def __call__(self, table: Any) -> dict[str, list[str]]:
        """Answer a batch of rows (`pyarrow.Table`); returns their result lines as JSON."""
        rows = [as_row(row) for row in table.to_pylist()]
        prompts = [self._prompt(row) for row in rows]
        good = [prompt for prompt in prompts if isinstance(prompt, BatchPrompt)]
        answers = answer_all(self._model, good, batch=self._side_by_side)
        lines = []
        for row, prompt in zip(rows, prompts, strict=True):
            result = next(answers) if isinstance(prompt, BatchPrompt) else prompt
            line: dict[str, Any] = {"id": row.get("id")}
            if isinstance(result, Phi3OnnxError):
                line["error"] = str(result)
            else:
                line |= {
                    "text": result.text,
                    "finish_reason": result.finish_reason,
                    "prompt_tokens": result.prompt_tokens,
                    "completion_tokens": result.completion_tokens,
                }
            lines.append(json.dumps(line, ensure_ascii=False))
        return {"line": lines}

    def _prompt(self, row: Row) -> BatchPrompt | Phi3OnnxError:
        given = {name: value for name, value in row.items() if value is not None}
        try:
            if "id" not in given:
                raise UsageError("a row must be an object with an `id`; this one is not")
            prompt = given.get("messages", given.get("prompt"))
            if not isinstance(prompt, str | list):
                raise UsageError("a row needs `prompt`, a text, or `messages`, a list; this one has neither")
            own = {name: value for name, value in given.items() if name in OPTIONS}
            return BatchPrompt(self._model.encode(prompt), self._model.options(**{**self._options, **own}))
        except Phi3OnnxError as error:
            return error


def as_row(found: Row) -> Row:
    """Return a row of the source: Parquet's as it is, JSONL's from its line; empty where that is no object."""
    if set(found) != {_LINE}:
        return found
    try:
        row = json.loads(found[_LINE])
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def done(output: Path) -> set[Any]:
    """Return the ids of the rows that an output has, after cutting off a last line that is not whole.

    Raises:
        UsageError: a line is not one of ours.

    """
    if not output.exists():
        return set()
    ids, end = set(), 0
    with output.open("rb+") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                ids.add(json.loads(line)["id"])
            except (ValueError, TypeError, KeyError):
                raise UsageError(f"{output}, line {number}, is not an answer of an earlier run; name another") from None
            end += len(line)
        file.truncate(end)
    return ids


def answers(
    rows: "Dataset", ids: set[Any], answerer: Mapping[str, Any], replicas: int, cpus: float, gpus: float, batch: int
) -> Iterator[str]:
    """Yield a result line for each row that is not done."""
    import ray  # pyright: ignore[reportMissingImports]

    known = ray.put(frozenset(ids))

    def left(row: Row) -> bool:
        return as_row(row).get("id") not in ray.get(known)

    found = rows.filter(left) if ids else rows
    found = found.map_batches(
        Answerer,
        fn_constructor_kwargs=dict(answerer),
        batch_size=batch,
        batch_format="pyarrow",
        concurrency=replicas,
        num_cpus=cpus,
        num_gpus=gpus,
    )
    for row in found.iter_rows():
        yield row["line"]


def read(source: str) -> "Dataset":
    """Return the rows of Parquet files, or the lines of JSONL files, for `as_row`.

    Raises:
        UsageError: the source cannot be read, or has no ids.

    """
    from ray import data as ray_data  # pyright: ignore[reportMissingImports]
    from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

    parquet = source.endswith(".parquet") or (Path(source).is_dir() and any(Path(source).glob("*.parquet")))
    try:
        rows = ray_data.read_parquet(source) if parquet else ray_data.read_text(source)
        names = list(as_row(rows.take(1)[0]))
    except IndexError:
        raise UsageError(f"{source} has no rows") from None
    except (OSError, ValueError, RayError) as error:
        raise UsageError(f"{source} cannot be read: {str(error).splitlines()[0]}") from error
    if "id" not in names:
        raise UsageError(
            f"{source}: the first row must have an `id`, which tells rows apart when a run continues; it has {names}"
        )
    return rows


@click.command()
@click.argument("package")
@click.argument("source", metavar="INPUT")
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(1), help="Copies of the model.")
@click.option("--cpus", default=1.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Cores of each.")
@click.option("--gpus", default=0.0, show_default=True, type=click.FloatRange(0), help="GPUs of each.")
@click.option("--provider", default="auto", show_default=True, help="Execution provider.")
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="Rows a copy takes at a time.")
@click.option(
    "--side-by-side", default=DEFAULT_BATCH, show_default=True, type=click.IntRange(1), help="Answers decoded together."
)
@click.option("--max-tokens", type=click.IntRange(1), help="Of rows that do not say it.")
@click.option("--temperature", type=click.FloatRange(0), help="Of rows that do not say it.")
def main(
    package: str,
    source: str,
    output: Path,
    replicas: int,
    cpus: float,
    gpus: float,
    provider: str,
    batch: int,
    side_by_side: int,
    max_tokens: int | None,
    temperature: float | None,
) -> None:
    """Answer every row of INPUT with PACKAGE, and append the answers to OUTPUT."""
    options = {
        name: value for name, value in (("max_tokens", max_tokens), ("temperature", temperature)) if value is not None
    }
    try:
        ids = done(output)
        rows = read(source)
        answerer = {
            "package": package,
            "provider": provider,
            "threads": max(1, int(cpus)),
            "side_by_side": side_by_side,
            "options": options,
        }
        count = failed = 0
        with output.open("a", encoding="utf-8") as file:
            for line in answers(rows, ids, answerer, replicas, cpus, gpus, batch):
                file.write(line + "\n")
                file.flush()
                count += 1
                failed += "error" in json.loads(line)
            os.fsync(file.fileno())
    except Phi3OnnxError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(f"{count} rows answered, {failed} of them with an error; {len(ids)} were there before", err=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
