"""A package's second graph, `decode.onnx`, held against the reference and against the first: its KV cache is int8."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...configs.progress import Progress
from ...runtime.engines.arena import Arena
from ...runtime.engines.layout import RowRun
from ...runtime.engines.packed import DECODE_NAME, LEAST_VERSION, PackedGraph, decodes_here
from ...runtime.engines.packed_engine import PackedEngine
from ...runtime.package import Package
from .compare import Rows, compare_passage, counted, text_counter
from .corpus import Passage
from .metrics import Comparison, Metrics

SINGLY = 64
"""Tokens at the end of each passage that run one at a time, as an answer's do."""

_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Decoding:
    """What was found of `decode.onnx`."""

    metrics: Metrics
    """Against the reference, over all positions."""
    beside: Metrics
    """Against `model.onnx`, whose KV cache is float32, over the tokens that ran one at a time."""


def has_decoding(package: Package) -> bool:
    """Whether a package has a second graph."""
    return (package.folder / DECODE_NAME).is_file()


def why_not(provider: str) -> str | None:
    """Return why a package's second graph cannot be measured here; None where it can.

    Args:
        provider: where the package is verified, by ONNX Runtime's name.

    """
    if provider != _CPU:
        return f"{DECODE_NAME}: not measured, it runs on the CPU alone"
    return None if decodes_here() else f"{DECODE_NAME}: not measured, it needs ONNX Runtime {LEAST_VERSION} or later"


def compare_decoding(
    package: Package,
    passages: Sequence[Passage],
    reference: Sequence[Rows],
    last: Sequence[np.ndarray],
    *,
    progress: Progress,
) -> Decoding:
    """Run `decode.onnx` over passages of text, in the pieces that prompts have here and at last one token at a time.

    Args:
        package: a package that has it.
        passages: the tokens.
        reference: the reference's logits of each passage.
        last: `model.onnx`'s logits of each passage's last tokens, float32 [tokens, vocabulary].
        progress: called with what is being done.

    Raises:
        PackageError: the graph cannot be loaded.
        EngineError: a run fails.

    """
    graph = PackedGraph(package)
    against_reference, against_first = Comparison(), Comparison()
    counter = text_counter(progress, f"{DECODE_NAME}: text", passages)
    for passage, wanted, first in zip(passages, reference, last, strict=True):
        pieces = counted(decode_logits(graph, passage.ids), counter)
        found = compare_passage(against_reference, pieces, passage, wanted, keep=len(first))
        against_first.add(first, found, passage.ids[len(passage.ids) - len(first) + 1 :])
    return Decoding(against_reference.result(), against_first.result())


def decode_logits(graph: PackedGraph, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first position and the logits of each run, float32 [positions, vocabulary].

    Args:
        graph: what to run.
        ids: token ids, [tokens].

    """
    arena = Arena(graph.shape, 1, len(ids))
    beyond = graph.switch is not None and len(ids) > graph.switch
    prompt = max(len(ids) - SINGLY, 1)
    stops = [*range(PackedEngine.prefill_chunk, prompt, PackedEngine.prefill_chunk), *range(prompt, len(ids) + 1)]
    start = 0
    for stop in stops:
        (logits,) = graph.run(arena, [RowRun(0, start, ids[start:stop].tolist(), stop - start, beyond)])
        yield start, logits
        start = stop
