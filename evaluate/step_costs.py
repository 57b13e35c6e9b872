"""What steps of a loaded graph take, by the number of their tokens."""

import time
from collections.abc import Sequence

import numpy as np

from ..runtime.engines.arena import Arena
from ..runtime.engines.layout import RowRun
from ..runtime.engines.packed import PackedGraph

STEPS = (1, 2, 4, 8, 16)
STEP_DEPTH = 200
_ROUNDS = 5


def step_costs(graph: PackedGraph, depth: int, counts: Sequence[int] = STEPS) -> dict[int, float]:
    """Return the seconds of steps of one text, at their best in rounds, by the number of their tokens.

    Args:
        graph: what to run.
        depth: tokens of the text before each step.
        counts: tokens of the steps; they are filled up as the graph does.

    """
    arena = Arena(graph.shape, 1, depth + max(counts))
    tokens = np.random.default_rng(0).integers(0, graph.vocab_size, depth + max(counts)).tolist()
    graph.run(arena, [RowRun(0, 0, tokens[:depth])])
    best: dict[int, float] = {}
    for _ in range(_ROUNDS):
        for count in counts:
            row = RowRun(0, depth, tokens[depth : depth + count], count)
            begun = time.perf_counter()
            graph.run(arena, [row])
            seconds, filled = time.perf_counter() - begun, graph.filled(count)
            best[filled] = min(seconds, best.get(filled, seconds))
    return best
