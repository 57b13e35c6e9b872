"""Which settings run a package fastest on this machine, of those that leave every bit of its logits as it is."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from ..configs import UsageError
from ..configs.sizes import size
from ..runtime import Model, load
from ..runtime.engines.load import EngineChoice, Notify, kind_of
from ..runtime.engines.packed import DECODE_NAME
from ..runtime.engines.packed_engine import PackedEngine
from ..runtime.engines.settings import EngineSettings
from ..runtime.package import weight_bytes
from ..runtime.proof.tuning import Tuning, keep_tuning, tuning_key
from ..runtime.providers.hardware import available_memory, physical_cores
from .machine_copies import COMPARED_PROMPT, COMPARED_STEPS, Copy, Int8Copy, make_copy, make_int8_copy, same_logits
from .step_costs import STEP_DEPTH, STEPS, step_costs

SECONDS = 120.0
"""How long it may take, but for loading and the comparison under way."""
_PROMPT, _DECODED = 256, 24
_CHUNKS = (64, 128, 256, 512)
_ROUNDS, _LEAST_ROUNDS = 5, 3  # the latter whatever time is left: one round can be anything
# What wins has to be this much faster: less is a machine's moods.
_MARGIN = 1.02

_Thing = TypeVar("_Thing")


@dataclass(frozen=True)
class Comparison:
    """One setting beside the one that was best until then."""

    setting: str
    ratio: float
    """How many times as fast it was: the median of rounds in turn."""
    same: bool
    """Whether all logits compared were equal in every bit."""
    taken: bool

    def __str__(self) -> str:
        """Say it in words."""
        if not self.same:
            return f"{self.setting}: other bits, left out"
        return f"{self.setting}: {self.ratio:.2f} times as fast{', taken' if self.taken else ''}"


@dataclass(frozen=True)
class Found:
    """What `tune` found."""

    package: str
    engine: str
    tuning: Tuning
    comparisons: Sequence[Comparison]
    left: Sequence[str]
    """What was not tried, for lack of time or memory."""
    kept: bool
    """Whether the cache folder could be written to."""
    copy: Copy | Int8Copy | None = None
    """The copy that was made for this machine; None where none was wanted."""


def tune(
    package: str | Path,
    *,
    engine: EngineChoice = "auto",
    seconds: float = SECONDS,
    prepack: bool = False,
    int8: bool = False,
    notify: Notify = lambda line: None,
) -> Found:
    """Find what suits a package on this machine's CPU, and keep it for `load`.

    Args:
        package: its folder, or its name in the store.
        engine: as for `load`.
        seconds: how long it may take, but for loading and the comparison under way.
        prepack: keep a copy of `decode.onnx` that is laid out for this machine, too.
        int8: keep one that multiplies integers, in place of that one, where prompts are faster with it.
        notify: called with a line for each thing that is tried.

    Raises:
        PackageError: there is no such package, or it is damaged.
        UsageError: it does not run on the CPU here, or has nothing to be laid out.
        OutputError: there is no room for the copy.

    """
    cores = physical_cores()
    first = load(package, engine=engine, threads=cores, speculate="off", tuned=False)
    search = _Search(first, package, engine, time.monotonic() + seconds, notify)
    try:
        if first.provider != "cpu":
            raise UsageError(f"tune finds settings of the CPU, and {first.package.name} runs on {first.provider} here")
        if (prepack or int8) and not isinstance(first.engine, PackedEngine):
            raise UsageError(
                f"a copy for this machine is made of {DECODE_NAME}, and {first.package.name} runs in "
                f"{first.engine.name}; leave {'--int8' if int8 else '--prepack'} out"
            )
        settings = EngineSettings(search.threads(cores), search.chunk(), search.costs())
    finally:
        first.close()
        search.best.close()
    tuning = Tuning(
        tuning_key(first.package.folder, kind_of(first.engine)),
        settings,
        _pays(settings.step_seconds),
        "; ".join(map(str, search.comparisons)) or "nothing was tried",
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    kept = keep_tuning(tuning)
    make = make_int8_copy if int8 else make_copy
    copy = make(first.package, settings.threads, notify) if int8 or prepack else None
    return Found(first.package.name, first.engine.name, tuning, search.comparisons, search.left, kept, copy)


def _pays(costs: Mapping[int, float]) -> bool:
    """Whether a draft that always comes true would make a text faster; so where nothing is known, too."""
    least = min(costs, default=1)
    return not costs or any(_MARGIN * cost < costs[least] * count for count, cost in costs.items() if count > least)


class _Search:
    def __init__(self, first: Model, package: str | Path, engine: EngineChoice, until: float, notify: Notify) -> None:
        self._package = package
        self._engine: EngineChoice = engine
        self._until = until
        self._notify = notify
        self._expected: list[np.ndarray] = []
        self.best = first
        self.comparisons = list[Comparison]()
        self.left = list[str]()

    def threads(self, cores: int) -> int:
        """Return the best number of threads; `best` is the model that has it."""
        self._expected = _logits(self.best)
        taken, allowed = cores, _logical()
        for count in sorted({cores - 1, (cores + 1) // 2, allowed} - {0, cores}, reverse=True):
            setting = f"{count} threads"
            if self._late(setting):
                continue
            needed = weight_bytes(self.best.package.folder)
            if 2 * needed > available_memory():
                self.left.append(f"{setting} ({size(2 * needed)} of memory are not free)")
                continue
            other = load(self._package, engine=self._engine, threads=count, speculate="off", tuned=False)
            if self._better(setting, self.best, other, lambda model: _work(model, _PROMPT, _DECODED)):
                self.best, other, taken = other, self.best, count
            other.close()
        return taken

    def chunk(self) -> int:
        """Return the best number of a prompt's tokens to run at a time."""
        engine = self.best.engine
        if not engine.continuous:
            return engine.prefill_chunk
        prompt = min(2 * max(_CHUNKS), self.best.context_length - 2)
        taken = own = engine.prefill_chunk
        for count in _CHUNKS:
            setting = f"{count} tokens of a prompt at a time"
            if count == own or count > prompt or self._late(setting):
                continue

            def work(chunk: int) -> None:
                self._set_chunk(chunk)
                _work(self.best, prompt, 0)

            before = taken
            self._set_chunk(count)
            if self._better(setting, before, count, work):
                taken = count
            self._set_chunk(taken)
        return taken

    def costs(self) -> dict[int, float]:
        """Return the seconds that a step of so many tokens takes, where drafts can be run."""
        engine = self.best.engine
        if not isinstance(engine, PackedEngine) or engine.graph.padding is None or self._late("steps of drafts"):
            return {}
        depth = min(STEP_DEPTH, self.best.context_length - 2 * max(STEPS))
        if depth < 1:
            return {}
        costs = step_costs(engine.graph, depth)
        self._notify(", ".join(f"a step of {count} tokens {seconds * 1e3:.1f} ms" for count, seconds in costs.items()))
        return costs

    def _set_chunk(self, chunk: int) -> None:
        engine: Any = self.best.engine  # the protocol only reads it
        engine.prefill_chunk = chunk

    def _late(self, setting: str) -> bool:
        if time.monotonic() < self._until:
            return False
        self.left.append(f"{setting} (no time left)")
        return True

    def _better(self, setting: str, best: _Thing, other: _Thing, work: Callable[[_Thing], None]) -> bool:
        """Try one thing beside another: whether it gives the same bits, and is faster."""
        same = same_logits(_logits(other if isinstance(other, Model) else self.best), self._expected)
        ratios = list[float]()
        if same:
            work(other)  # the first run of anything is slower
        while same and len(ratios) < _ROUNDS and (len(ratios) < _LEAST_ROUNDS or time.monotonic() < self._until):
            was, now = (_seconds(work, thing) for thing in (best, other))
            ratios.append(was / now)
        ratio = statistics.median(ratios) if ratios else 0.0
        found = Comparison(setting, round(ratio, 3), same, same and ratio > _MARGIN)
        self.comparisons.append(found)
        self._notify(str(found))
        return found.taken


def busy_cores() -> float:
    """Return how many cores other programs keep busy, over a second."""
    return psutil.cpu_percent(interval=1.0) / 100 * (os.cpu_count() or 1)


def _logical() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _seconds(work: Callable[[_Thing], Any], thing: _Thing) -> float:
    started = time.perf_counter()
    work(thing)
    return time.perf_counter() - started


def _ids(model: Model, count: int) -> list[int]:
    return np.random.default_rng(0).integers(0, model.package.contract.vocab_size, count).tolist()


def _work(model: Model, prompt: int, decoded: int) -> None:
    """Run a prompt and single tokens after it, as far as the context goes."""
    prompt = min(prompt, model.context_length - decoded - 1)
    ids, cache = _ids(model, prompt + decoded), model.new_cache()
    try:
        cache.reserve(len(ids))
        for _ in cache.prefill(ids[:prompt]):
            pass
        cache.logits()
        for token in ids[prompt:]:
            cache.append(token)
            cache.logits()
    finally:
        cache.close()


def _logits(model: Model) -> list[np.ndarray]:
    """Return logits after a prompt of several chunks, and after single tokens."""
    prompt = min(COMPARED_PROMPT, model.context_length - COMPARED_STEPS - 1)
    ids, cache = _ids(model, prompt + COMPARED_STEPS), model.new_cache()
    try:
        cache.reserve(len(ids))
        for _ in cache.prefill(ids[:prompt]):
            pass
        found = [cache.logits().copy()]
        for token in ids[prompt:]:
            cache.append(token)
            found.append(cache.logits().copy())
        return found
    finally:
        cache.close()
