"""Speed of a package: prefill, decode, loading, memory."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..configs import UsageError
from ..configs.progress import Counter, Progress, silent
from ..runtime import Model, load
from ..runtime.engines.load import EngineChoice
from ..runtime.providers.hardware import default_threads
from .bytes_read import weights_read
from .machine import peak_memory, read_bandwidth

_WARM_UP = 16
"""Tokens run before the clock does: the first run of a session reserves memory and packs weights."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second of a loaded package, through the runtime that users run it with."""

    provider: str
    engine: str
    """What ran it, such as `onnxruntime-genai 0.18.0`."""
    prompt_tokens: int
    decoded_tokens: int
    repeat: int
    prefill_tokens_per_second: float
    """Median over the repetitions, like the next one."""
    decode_tokens_per_second: float
    """At a context of the prompt's length."""


@dataclass(frozen=True)
class Bench:
    """What `bench` measured."""

    package: str
    speed: Speed
    load_seconds: float
    peak_memory_bytes: int
    """Resident memory of this process at its highest, the interpreter included."""
    first_token_seconds: float
    """From the prompt to the logits after it, the median."""
    read_share: float | None
    """Bytes of weights and cache that decoding read a second, of what plain reads give; None where not known."""


def bench(
    package: str | Path,
    *,
    provider: str = "auto",
    engine: EngineChoice = "auto",
    threads: int | None = None,
    prompt_tokens: int = 512,
    decoded_tokens: int = 48,
    repeat: int = 3,
    progress: Progress = silent,
) -> Bench:
    """Load a package and measure it.

    Args:
        package: its folder, or its name in the store.
        provider: as for `load`.
        engine: as for `load`.
        threads: as for `load`.
        prompt_tokens: as for `measure_speed`, like the next two.
        decoded_tokens: tokens run one by one after the prompt.
        repeat: how often; the medians count.
        progress: called between what is timed.

    Raises:
        PackageError: there is no such package, or it is damaged.
        ProviderError: the provider cannot run here.
        UsageError: the tokens do not fit into the model's context.

    """
    progress("loading the package")
    start = time.perf_counter()
    with load(package, provider=provider, engine=engine, threads=threads, speculate="off") as model:
        loaded = time.perf_counter() - start
        speed = measure_speed(model, prompt_tokens, decoded_tokens, repeat, progress)
        peak, weights, share = peak_memory(), weights_read(model), None
        if model.provider == "cpu" and weights:
            cache = model.kv_bytes_per_token * (prompt_tokens + decoded_tokens / 2)
            read = speed.decode_tokens_per_second * (weights + cache)
            share = round(read / read_bandwidth(threads or default_threads()), 3)
        first = round(prompt_tokens / speed.prefill_tokens_per_second, 4)
        return Bench(model.package.name, speed, round(loaded, 3), peak, first, share)


def measure_speed(
    model: Model, prompt_tokens: int, decoded_tokens: int, repeat: int, progress: Progress = silent
) -> Speed:
    """Measure a loaded package on random tokens, whose values do not matter for speed.

    Args:
        model: the package.
        prompt_tokens: length of the prompt that is prefilled.
        decoded_tokens: tokens run one by one after it.
        repeat: how often; the medians count.
        progress: called between what is timed.

    Raises:
        EngineError: the engine failed.
        UsageError: the tokens do not fit into the model's context.

    """
    if prompt_tokens + decoded_tokens > model.context_length:
        raise UsageError(
            f"{prompt_tokens} + {decoded_tokens} tokens do not fit into the context of {model.context_length}"
        )
    counter = Counter(progress, "measuring", repeat, "runs")
    _run(model, min(prompt_tokens, _WARM_UP), 1)
    runs: list[tuple[float, float]] = []
    for _ in range(repeat):
        runs.append(_run(model, prompt_tokens, decoded_tokens))
        counter.add(1)
    return Speed(
        provider=model.provider,
        engine=model.engine.name,
        prompt_tokens=prompt_tokens,
        decoded_tokens=decoded_tokens,
        repeat=repeat,
        prefill_tokens_per_second=round(prompt_tokens / statistics.median(run[0] for run in runs), 2),
        decode_tokens_per_second=round(decoded_tokens / statistics.median(run[1] for run in runs), 2),
    )


def _run(model: Model, prompt_tokens: int, decoded_tokens: int) -> tuple[float, float]:
    """Return the seconds of a prefill and those of the steps after it."""
    vocabulary = model.package.contract.vocab_size
    ids = np.random.default_rng(0).integers(0, vocabulary, prompt_tokens + decoded_tokens).tolist()
    cache = model.new_cache()
    try:
        cache.reserve(len(ids))
        start = time.perf_counter()
        for _ in cache.prefill(ids[:prompt_tokens]):
            pass
        cache.logits()
        middle = time.perf_counter()
        for token in ids[prompt_tokens:]:
            cache.append(token)
            cache.logits().argmax()  # as decoding would
        return middle - start, time.perf_counter() - middle
    finally:
        cache.close()
