"""Speed over lengths, depths and numbers of texts at a time: each figure a median with its spread."""

import csv
import io
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..configs import UsageError
from ..runtime import Model, load
from ..runtime.batch import BatchPrompt, answer_all
from ..runtime.engines.load import EngineChoice

Kind = Literal["prefill", "decode", "together"]
_WARM_UP = 16


@dataclass(frozen=True)
class Figure:
    """Tokens a second of one kind of work."""

    kind: Kind
    """`together` counts the tokens of all texts, from the first prompt's begin to the last token's end."""
    tokens: int
    """Tokens of each run, of each text."""
    depth: int
    """Tokens that were in the cache before; of a prompt each text had of its own, with `together`."""
    texts: int
    tokens_per_second: float
    """The median."""
    least: float
    most: float


@dataclass(frozen=True)
class Sweep:
    """All figures of one package."""

    package: str
    provider: str
    engine: str
    load_seconds: float
    figures: Sequence[Figure]


def sweep(
    package: str | Path,
    *,
    provider: str = "auto",
    engine: EngineChoice = "auto",
    threads: int | None = None,
    prompts: Sequence[int] = (512,),
    decodes: Sequence[int] = (48,),
    depths: Sequence[int] = (0,),
    texts: Sequence[int] = (),
    repeat: int = 3,
) -> Sweep:
    """Load a package and measure it; all kinds in turn, `repeat` times, after a run that warms up.

    Args:
        package: its folder, or its name in the store.
        provider: as for `load`.
        engine: as for `load`.
        threads: as for `load`.
        prompts: lengths of prompts to prefill.
        decodes: tokens to run one by one.
        depths: tokens that are in the cache before either.
        texts: numbers of texts to answer at a time, each of the longest of `decodes` after the longest of `depths`.
        repeat: how often.

    Raises:
        PackageError: there is no such package, or it is damaged.
        ProviderError: the provider cannot run here.
        UsageError: the tokens do not fit into the model's context, or texts cannot be decoded together.

    """
    started = time.perf_counter()
    with load(package, provider=provider, engine=engine, threads=threads, speculate="off") as model:
        loaded = time.perf_counter() - started
        deepest = max(depths) + max([*prompts, *decodes])
        if deepest > model.context_length:
            raise UsageError(f"{deepest} tokens do not fit into the context of {model.context_length}")
        if texts and model.together(1) is None:
            raise UsageError(f"{model.package.name} does not decode texts together in {model.engine.name}")
        jobs = [("prefill", count, depth, 1) for depth in depths for count in prompts]
        jobs += [("decode", count, depth, 1) for depth in depths for count in decodes]
        jobs += [("together", max(decodes), max(depths), count) for count in texts]
        _run(model, "decode", 4, _WARM_UP, 1)
        found = [list[float]() for _ in jobs]
        for _ in range(repeat):
            for job, speeds in zip(jobs, found, strict=True):
                speeds.append(job[1] * job[3] / _run(model, *job))
        figures = [
            Figure(*job, *(round(of(speeds), 2) for of in (statistics.median, min, max)))  # pyright: ignore[reportArgumentType]
            for job, speeds in zip(jobs, found, strict=True)
        ]
        return Sweep(model.package.name, model.provider, model.engine.name, round(loaded, 3), figures)


def _run(model: Model, kind: str, tokens: int, depth: int, texts: int) -> float:
    """Return the seconds that one kind of work takes."""
    random = np.random.default_rng(0)
    if kind == "together":
        options = model.options(max_tokens=tokens, temperature=0, ignore_eos=True)
        jobs = [BatchPrompt(_ids(model, random, max(depth, 1)), options) for _ in range(texts)]
        started = time.perf_counter()
        for result in answer_all(model, jobs, batch=texts):
            if isinstance(result, Exception):
                raise result
        return time.perf_counter() - started
    ids, cache = _ids(model, random, depth + tokens + 1), model.new_cache()
    first = ids[: depth if kind == "prefill" else max(depth, 1)]
    try:
        cache.reserve(len(ids))
        for _ in cache.prefill(first) if first else ():
            pass
        started = time.perf_counter()
        if kind == "prefill":
            for _ in cache.prefill(ids[: depth + tokens]):
                pass
            cache.logits()
        else:
            for token in ids[len(first) : len(first) + tokens]:
                cache.append(token)
                cache.logits().argmax()  # as decoding would
        return time.perf_counter() - started
    finally:
        cache.close()


def _ids(model: Model, random: np.random.Generator, count: int) -> list[int]:
    return random.integers(0, model.package.contract.vocab_size, count).tolist()


_COLUMNS = ("package", "kind", "tokens", "depth", "texts", "tokens_per_second", "least", "most")


def _rows(sweeps: Sequence[Sweep]) -> list[list[str]]:
    return [
        [sweep.package, *(str(getattr(figure, name)) for name in _COLUMNS[1:])]
        for sweep in sweeps
        for figure in sweep.figures
    ]


def _table(sweeps: Sequence[Sweep]) -> str:
    rows = [list(_COLUMNS), *_rows(sweeps)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _markdown(sweeps: Sequence[Sweep]) -> str:
    lines = [list(_COLUMNS), ["---"] * len(_COLUMNS), *_rows(sweeps)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _csv(sweeps: Sequence[Sweep]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *_rows(sweeps)])
    return text.getvalue().rstrip("\n")


FORMATS: Mapping[str, Callable[[Sequence[Sweep]], str]] = {
    "table": _table,
    "md": _markdown,
    "csv": _csv,
    "json": lambda sweeps: json.dumps([asdict(sweep) for sweep in sweeps], indent=1),
}
"""How sweeps are written, by name."""
