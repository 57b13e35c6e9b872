"""Copies of a package's second graph for this machine: of the same bits, or in int8 where that is faster here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..configs import UsageError
from ..configs.sizes import size
from ..runtime.engines.arena import Arena
from ..runtime.engines.layout import RowRun
from ..runtime.engines.load import Notify
from ..runtime.engines.packed import PackedGraph
from ..runtime.engines.packed_engine import PackedEngine
from ..runtime.engines.prepacked import MachineCopy
from ..runtime.package import Package, weight_bytes
from ..runtime.proof.prepacked import keep_copy
from ..runtime.providers.hardware import available_memory
from .evaluate import stretches
from .parity.corpus import text
from .parity.metrics import Comparison, Metrics
from .step_costs import STEP_DEPTH, step_costs

COMPARED_PROMPT, COMPARED_STEPS = 582, 6
"""Logits are compared after a prompt longer than any piece of one, and after so many single tokens."""
_LOADS = 3
# In int8: what the text must cost at most, in nats, and how much faster prompts must be at least.
_MOST_KL = 0.1
_LEAST_GAIN = 1.1
_TEXT_TOKENS, _CONTEXT, _PIECE = 2048, 512, 128
# Of memory, for each byte of the package: 3.8 were measured.
_MEMORY_IN_INT8 = 4
_TIMED = (1, 8, 128)
_ROUNDS = 3


@dataclass(frozen=True)
class Copy:
    """A copy whose weights lie as this processor's kernels want them."""

    bytes: int
    """On disk; 0 where it computed something else, and was not kept."""
    load_seconds: float
    """To load it."""
    load_seconds_before: float
    """To load the package's own."""

    def __str__(self) -> str:
        """Say it in words."""
        if not self.bytes:
            return "the copy for this machine gave other bits, and was not kept"
        times = f"{self.load_seconds:.2f} s where it took {self.load_seconds_before:.2f} s"
        return f"a copy for this machine, {size(self.bytes)}, loads in {times}"


@dataclass(frozen=True)
class Int8Copy:
    """A copy that multiplies int8 weights by int8 activations; ratios are of the package's own time over its time."""

    bytes: int
    """On disk; 0 where it was not worth it, or too far from the package, and was not kept."""
    prompt: float
    """How many times as fast pieces of prompts are."""
    single: float
    """The same of single tokens."""
    eight: float
    """The same of steps of 8 tokens."""
    mean_kl: float
    """From the package's own logits, in nats."""
    top1_agreement: float

    def __str__(self) -> str:
        """Say it in words."""
        speed = f"prompts {self.prompt:.2f} times as fast, single tokens {self.single:.2f}, steps of 8 {self.eight:.2f}"
        change = f"KL {self.mean_kl:.3f} from the package's own logits, the same top token {self.top1_agreement:.1%}"
        if self.bytes:
            return f"a copy in int8 for this machine, {size(self.bytes)}: {speed}; {change}"
        too_far = "" if self.mean_kl <= _MOST_KL else f", more than {_MOST_KL:g}"
        too_slow = "" if self.prompt >= _LEAST_GAIN else f", less than {_LEAST_GAIN:g} times"
        return f"int8 is not worth it on this machine, and nothing was kept: {speed}{too_slow}; {change}{too_far}"


def make_copy(package: Package, threads: int | None, notify: Notify) -> Copy:
    """Keep a copy that is laid out for this machine, if it gives the package's logits in every bit.

    Raises:
        PackageError: the graph cannot be loaded.
        OutputError: there is no room for it.

    """
    notify("laying the weights out for this machine")
    graph, before = _loaded(package, threads, None)
    expected, after = _graph_logits(graph, package), 0.0
    del graph

    def suits(path: Path) -> str | None:
        nonlocal after
        copy, after = _loaded(package, threads, MachineCopy(path))
        return "the same bits" if copy.is_copy and same_logits(_graph_logits(copy, package), expected) else None

    found = Copy(keep_copy(package, suits) or 0, round(after, 3), round(before, 3))
    notify(str(found))
    return found


def make_int8_copy(package: Package, threads: int | None, notify: Notify) -> Int8Copy:
    """Keep a copy that multiplies int8 by int8, if prompts are faster with it here and its logits near enough.

    Raises:
        PackageError: the graph cannot be loaded.
        UsageError: there is not enough memory to make it.
        OutputError: there is no room for it.

    """
    from ..export.graph.int8_copy import write_int8_graph

    needed = _MEMORY_IN_INT8 * weight_bytes(package.folder)
    if (free := available_memory()) < needed:
        raise UsageError(
            f"a copy of {package.name} in int8 takes up to {size(needed)} of memory while it is made, and {size(free)} "
            "are free; close other programs, or leave --int8 out"
        )
    notify("writing the weights in int8 for this machine")
    tried: list[Int8Copy] = []

    def suits(path: Path) -> str | None:
        own, copy = PackedGraph(package, threads=threads), PackedGraph(package, threads=threads, copy=MachineCopy(path))
        far, gains = _difference(own, copy, package), _gains(own, copy, package)
        tried.append(Int8Copy(0, *gains, round(far.mean_kl, 5), round(far.top1_agreement, 4)))
        return f"KL {far.mean_kl:.3f}" if far.mean_kl <= _MOST_KL and gains[0] >= _LEAST_GAIN else None

    kept = keep_copy(package, suits, in_int8=write_int8_graph) or 0
    found = replace(tried[0], bytes=kept)
    notify(str(found))
    return found


def same_logits(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    """Whether all are equal, in every bit."""
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


def _loaded(package: Package, threads: int | None, copy: MachineCopy | None) -> tuple[PackedGraph, float]:
    """Return a graph and the seconds that it took to load, at their best of a few times."""
    graph, seconds = None, list[float]()
    while graph is None or len(seconds) < _LOADS:
        graph = None  # no two at a time
        begun = time.perf_counter()
        graph = PackedGraph(package, threads=threads, copy=copy)
        seconds.append(time.perf_counter() - begun)
    return graph, min(seconds)


def _graph_logits(graph: PackedGraph, package: Package) -> list[np.ndarray]:
    """Return all logits of a prompt of several pieces, and of single tokens after it."""
    length = min(COMPARED_PROMPT, package.context_length - 1)
    tokens = np.random.default_rng(0).integers(0, graph.vocab_size, length).tolist()
    stops = [*range(PackedEngine.prefill_chunk, length - COMPARED_STEPS, PackedEngine.prefill_chunk)]
    stops += range(max(length - COMPARED_STEPS, 1), length + 1)
    arena, found = Arena(graph.shape, 1, length), list[np.ndarray]()
    for start, stop in pairwise([0, *stops]):
        found += graph.run(arena, [RowRun(0, start, tokens[start:stop], stop - start)])
    return found


def _difference(own: PackedGraph, copy: PackedGraph, package: Package) -> Metrics:
    """Compare two graphs of a package on the project's own text, its short factors alone where LongRoPE has two."""
    comparison = Comparison()
    context = min(_CONTEXT, package.context_length, own.switch or _CONTEXT)
    for passage in stretches(package, text(), _TEXT_TOKENS, context):
        arenas = Arena(own.shape, 1, context), Arena(copy.shape, 1, context)
        for start in range(0, len(passage.ids), _PIECE):
            tokens = passage.ids[start : start + _PIECE].tolist()
            row = RowRun(0, start, tokens, len(tokens))
            (expected,), (found,) = (graph.run(arena, [row]) for graph, arena in zip((own, copy), arenas, strict=True))
            comparison.add(expected, found, passage.ids[start + 1 : start + 1 + len(tokens)])
    return comparison.result()


def _gains(own: PackedGraph, copy: PackedGraph, package: Package) -> tuple[float, float, float]:
    """Return how many times as fast a copy runs pieces of prompts, single tokens, and steps of 8, in turn."""
    longest = min(package.context_length, own.switch or package.context_length)
    counts = [min(count, longest - 1) for count in _TIMED]
    depth = max(1, min(STEP_DEPTH, longest - max(counts)))
    times: list[list[dict[int, float]]] = [[], []]
    for _ in range(_ROUNDS):
        for graph, found in zip((own, copy), times, strict=True):
            found.append(step_costs(graph, depth, counts))
    before, after = (
        [min(costs[graph.filled(count)] for costs in found) for count in counts]
        for graph, found in zip((own, copy), times, strict=True)
    )
    single, eight, prompt = (round(was / now, 3) for was, now in zip(before, after, strict=True))
    return prompt, single, eight
