"""Speed over lengths, depths and numbers of texts at a time: each figure a median with its spread."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..configs import UsageError
from ..configs.progress import Counter, Progress, silent
from ..runtime import Model, Response, load
from ..runtime.batch import BatchPrompt, answer_all
from ..runtime.decoding.response import last_response
from ..runtime.decoding.speculation import OFF, Speculation
from ..runtime.engines.load import EngineChoice
from ..runtime.providers.hardware import default_threads
from .bytes_read import weights_read
from .machine import EnergyMeter, peak_memory, read_bandwidth

Kind = Literal["prefill", "decode", "together", "answer", "ahead"]
_WARM_UP = 16
# What drafts are for: an answer that repeats its prompt.
_TASK = (
    "Write this text again, word for word. The harbour has two piers of granite, a crane and forty berths. Boats come "
    "in with the tide, unload their fish before noon, and leave again at night. In winter the northern pier is closed, "
    "since waves of four metres break over it; then all boats lie at the southern one, close together."
)


@dataclass(frozen=True)
class Figure:
    """Tokens a second of one kind of work."""

    kind: Kind
    """`together` counts the tokens of all texts, from the first prompt's begin to the last token's end; `answer` and
    `ahead` those after the first of one greedy answer that is asked to repeat its prompt, the latter with drafts."""
    tokens: int
    """Tokens of each run, of each text."""
    depth: int
    """Tokens that were in the cache before; of a prompt each text had of its own, with `together`."""
    texts: int
    tokens_per_second: float
    """The median."""
    least: float
    most: float
    first_token_seconds: float | None = None
    """From the prompt to the logits after it, the median; None but for `prefill`."""
    read_share: float | None = None
    """Of `decode` on the CPU: bytes of weights and cache that its tokens read a second, of `Sweep.read_bandwidth`."""
    joules_per_token: float | None = None
    """Of the whole machine's processors, where they can be read; of `answer` and `ahead`, their prompt's included."""
    accepted_share: float | None = None
    """Of `ahead`: how many of the tokens of drafts came true; None where none was drafted."""


@dataclass(frozen=True)
class Sweep:
    """All figures of one package."""

    package: str
    provider: str
    engine: str
    load_seconds: float
    cold_first_token_seconds: float
    """From the first prompt after loading to its first token: nothing has run before it."""
    peak_memory_bytes: int
    """Resident memory of the process at its highest, the interpreter included, before memory itself was measured."""
    read_bandwidth: float | None
    """Bytes a second that as many threads read plainly, at their best between these runs; None but for the CPU."""
    weight_bytes: int | None
    """Bytes of weights that a token reads; None where the package does not say."""
    energy: str
    """What was read of energy; empty where nothing can be."""
    warm_up: str
    """What ran before the figures' runs, in words."""
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
    speculate: str = "off",
    draft: Path | None = None,
    repeat: int = 3,
    progress: Progress = silent,
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
        speculate: as for `load`, for an answer with drafts beside the same without any; `off` leaves both out.
        draft: as for `load`.
        repeat: how often.
        progress: called between what is timed.

    Raises:
        PackageError: there is no such package, or it is damaged.
        ProviderError: the provider cannot run here.
        UsageError: the tokens do not fit into the model's context, or texts cannot be decoded together
            or be run ahead.

    """
    progress("loading the package")
    started = time.perf_counter()
    with load(package, provider=provider, engine=engine, threads=threads, speculate=speculate, draft=draft) as model:
        loaded = time.perf_counter() - started
        deepest = max(depths) + max([*prompts, *decodes])
        if deepest > model.context_length:
            raise UsageError(f"{deepest} tokens do not fit into the context of {model.context_length}")
        if texts and model.together(1) is None:
            raise UsageError(f"{model.package.name} does not decode texts together in {model.engine.name}")
        ahead, model.speculation = model.speculation, OFF
        jobs = [_Job("prefill", count, depth) for depth in depths for count in prompts]
        jobs += [_Job("decode", count, depth) for depth in depths for count in decodes]
        jobs += [_Job("together", max(decodes), max(depths), count) for count in texts]
        if speculate != "off":
            if model.together(1) is None:
                raise UsageError(f"{model.package.name} runs nothing ahead in {model.engine.name}")
            jobs += [_Job(kind, max(decodes), len(model.encode(_TASK))) for kind in ("answer", "ahead")]
        counter = Counter(progress, "measuring", repeat * len(jobs), "runs")
        cold = _run(model, _Job("prefill", min(prompts)))
        _run(model, _Job("decode", 4, _WARM_UP))
        rounds, meter = _Rounds(model, jobs, ahead), EnergyMeter(model.provider)
        peak, bandwidth = 0, None
        for _ in range(repeat):
            rounds.run(meter, counter)
            peak = peak or peak_memory()
            if model.provider == "cpu":
                bandwidth = max(bandwidth or 0.0, read_bandwidth(threads or default_threads()))
        weights = weights_read(model) if model.provider == "cpu" else None
        return Sweep(
            package=model.package.name,
            provider=model.provider,
            engine=model.engine.name,
            load_seconds=round(loaded, 3),
            cold_first_token_seconds=round(cold, 4),
            peak_memory_bytes=peak,
            read_bandwidth=bandwidth,
            weight_bytes=weights,
            energy=meter.source,
            warm_up=f"a prompt of {min(prompts)} tokens, then {_WARM_UP} and 4 single ones",
            figures=rounds.figures(bandwidth, weights),
        )


class _Job(NamedTuple):
    """What one figure is of; see `Figure`."""

    kind: Kind
    tokens: int
    depth: int = 0
    texts: int = 1


class _Rounds:
    """Jobs in turn, again and again, and what they took."""

    def __init__(self, model: Model, jobs: Sequence[_Job], ahead: Speculation) -> None:
        self._model = model
        self._ahead = ahead
        self._drafted = self._accepted = 0
        self._seconds = {job: list[float]() for job in jobs}
        self._joules = {job: list[float]() for job in jobs}

    def run(self, meter: EnergyMeter, counter: Counter) -> None:
        """Run each job once."""
        for job, seconds in self._seconds.items():
            run = self._run_answer if job.kind in ("answer", "ahead") else partial(_run, self._model)
            seconds.append(run(job, lambda work, job=job: self._metered(meter, job, work)))
            counter.add(1)

    def figures(self, bandwidth: float | None, weights: int | None) -> list[Figure]:
        """Return what all rounds gave."""
        return [self._figure(job, bandwidth, weights) for job in self._seconds]

    def _run_answer(self, job: _Job, around: Callable[[Callable[[], None]], None]) -> float:
        """Return the seconds from an answer's first token to its last."""
        model, found = self._model, list[Response]()
        model.speculation = self._ahead if job.kind == "ahead" else OFF
        options = model.options(max_tokens=job.tokens + 1, temperature=0, ignore_eos=True)
        around(lambda: found.append(last_response(model.run(model.encode(_TASK), options))))
        model.speculation = OFF
        self._drafted += found[0].drafted_tokens
        self._accepted += found[0].accepted_tokens
        return found[0].decode_seconds

    def _metered(self, meter: EnergyMeter, job: _Job, work: Callable[[], None]) -> None:
        if (joules := meter.joules(work)) is not None:
            self._joules[job].append(joules)

    def _figure(self, job: _Job, bandwidth: float | None, weights: int | None) -> Figure:
        kind, tokens, depth, texts = job
        speeds = [tokens * texts / seconds for seconds in self._seconds[job]]
        median, joules = statistics.median(speeds), self._joules[job]
        share = None
        if kind == "decode" and bandwidth and weights:
            cache = self._model.kv_bytes_per_token * (max(depth, 1) + tokens / 2)
            share = round(median * (weights + cache) / bandwidth, 3)
        return Figure(
            kind,
            tokens,
            depth,
            texts,
            *(round(speed, 2) for speed in (median, min(speeds), max(speeds))),
            first_token_seconds=round(statistics.median(self._seconds[job]), 4) if kind == "prefill" else None,
            read_share=share,
            joules_per_token=round(statistics.median(joules) / (tokens * texts), 4) if joules else None,
            accepted_share=round(self._accepted / self._drafted, 3) if kind == "ahead" and self._drafted else None,
        )


def _at_once(work: Callable[[], None]) -> None:
    work()


def _run(model: Model, job: _Job, around: Callable[[Callable[[], None]], None] = _at_once) -> float:
    """Return the seconds that one kind of work takes; `around` is given the work, and does it."""
    kind, tokens, depth, texts = job
    random = np.random.default_rng(0)
    if kind == "together":
        options = model.options(max_tokens=tokens, temperature=0, ignore_eos=True)
        prompts = [BatchPrompt(_ids(model, random, max(depth, 1)), options) for _ in range(texts)]
        return _timed(lambda: _answer(model, prompts), around)
    ids, cache = _ids(model, random, depth + tokens + 1), model.new_cache()
    first = ids[: depth if kind == "prefill" else max(depth, 1)]

    def prefill() -> None:
        for _ in cache.prefill(ids[: depth + tokens]):
            pass
        cache.logits()

    def decode() -> None:
        for token in ids[len(first) : len(first) + tokens]:
            cache.append(token)
            cache.logits().argmax()  # as decoding would

    try:
        cache.reserve(len(ids))
        for _ in cache.prefill(first) if first else ():
            pass
        return _timed(prefill if kind == "prefill" else decode, around)
    finally:
        cache.close()


def _timed(work: Callable[[], None], around: Callable[[Callable[[], None]], None]) -> float:
    seconds = 0.0

    def clocked() -> None:
        nonlocal seconds
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started

    around(clocked)  # whose own reading of counters does not count
    return seconds


def _answer(model: Model, prompts: Sequence[BatchPrompt]) -> None:
    for result in answer_all(model, prompts, batch=len(prompts)):
        if isinstance(result, Exception):
            raise result


def _ids(model: Model, random: np.random.Generator, count: int) -> list[int]:
    return random.integers(0, model.package.contract.vocab_size, count).tolist()
