"""What the model cards of Phi-3-mini say of benchmarks, beside what the harness found for a package."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ...configs import Manifest

_DATA = "model_card_benchmarks.toml"


@dataclass(frozen=True)
class Benchmark:
    """A line of the cards, and the task of lm-evaluation-harness that asks the same."""

    name: str
    task: str
    shots: int
    """Examples before each question, on the card."""
    metric: str
    """With its filter, as the harness names it: `acc,none`."""
    card: str
    """Year and month of the card."""
    values: Mapping[str, float]
    """Model -> per cent."""
    parts: tuple[str, ...] = ()
    """The tasks of a task that has no figure of its own; its figure is their mean, weighted by their questions."""

    def measured(self, results: Mapping[str, Mapping[str, Any]]) -> float | None:
        """Return the figure in the harness's results, in per cent; None where it was not measured."""
        found = [results[task] for task in (self.parts or (self.task,)) if self.metric in results.get(task, {})]
        if len(found) < max(1, len(self.parts)):
            return None
        sizes = [float(result.get("sample_len") or 1) if self.parts else 1.0 for result in found]
        total = sum(size * float(result[self.metric]) for size, result in zip(sizes, found, strict=True))
        return 100 * total / sum(sizes)


@cache
def benchmarks() -> tuple[Benchmark, ...]:
    """Return the benchmarks of the cards, in their order; `evaluate/data` names the sources."""
    text = files("phi3_onnx.evaluate").joinpath("data", _DATA).read_text(encoding="utf-8")
    entries = tomllib.loads(text)["benchmark"]
    return tuple(Benchmark(**{**entry, "parts": tuple(entry.get("parts", ()))}) for entry in entries)


def card_table(
    manifest: Manifest | None, results: Mapping[str, Mapping[str, Any]], shots: Mapping[str, int]
) -> str | None:
    """Return a Markdown table of a package's figures beside its model's card; None where no card has any of them.

    Args:
        manifest: the package's. Only Microsoft's own checkpoints have a card here, no fine-tunes.
        results: the harness's: task -> metric -> value.
        shots: task -> examples before each of its questions.

    """
    if manifest is None or manifest.adapter is not None:
        return None
    # `source` is a hub id, or a folder or file; `model` its name without what llama.cpp adds to it.
    names = {name.lower() for name in (manifest.model, re.split(r"[\\/]", manifest.source)[-1])}
    rows: list[str] = []
    for benchmark in benchmarks():
        values = [value for model, value in benchmark.values.items() if model.lower() in names]
        figure = benchmark.measured(results)
        if figure is None or not values:
            continue
        asked = shots.get((benchmark.parts or (benchmark.task,))[0], "")
        rows.append(
            f"| {benchmark.name} | {figure:.1f} | {asked} | {values[0]:.1f} | {benchmark.shots} | {benchmark.card} |"
        )
    if not rows:
        return None
    head = ["| benchmark | here | shots | card | its shots | card of |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *rows])
