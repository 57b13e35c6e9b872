"""The packed graph's inputs but for the KV cache: where each token of a run stands.

Steps of answers repeat one layout with other tokens. So its arrays are made and bound once, and then filled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class RowRun:
    """What one run does to one text."""

    slot: int
    start: int
    """Tokens of it in the cache already."""
    tokens: Sequence[int]
    logits: int = 1
    """Of how many tokens, the last ones, logits are wanted."""
    beyond: bool = False
    """Whether LongRoPE's long factors hold for this text."""

    @property
    def stop(self) -> int:
        """Tokens in the cache after the run."""
        return self.start + len(self.tokens)


class RowShape(NamedTuple):
    """What the layout needs to know of a text: its slot, counted from the run's first, its tokens, and its logits."""

    slot: int
    tokens: int
    logits: int


def row_shapes(rows: Sequence[RowRun], first: int) -> tuple[RowShape, ...]:
    """Return the shapes of rows in slots from `first` on."""
    return tuple(RowShape(row.slot - first, len(row.tokens), row.logits) for row in rows)


class RunLayout:
    """The arrays of all runs whose rows have the same shapes."""

    def __init__(self, shapes: Sequence[RowShape], slots: int, filled: Callable[[int], int]) -> None:
        """Lay the rows out.

        Args:
            shapes: of the rows, by rising slots.
            slots: from the first row's to the last one's.
            filled: how many rows a matrix product needs for so many tokens.

        """
        self.shapes = tuple(shapes)
        lengths = np.zeros(slots, np.int64)
        for shape in shapes:
            lengths[shape.slot] = shape.tokens
        begins, total, places = np.cumsum(lengths) - lengths, int(lengths.sum()), np.arange(lengths.max())
        # A place without a token repeats the row's last one, or any: nothing of it is read.
        pad = np.minimum(begins[:, None] + np.minimum(places, np.maximum(lengths[:, None] - 1, 0)), total - 1)
        unpad = [index * len(places) + np.arange(length) for index, length in enumerate(lengths) if length]
        self.wanted: list[slice] = []
        """For each row, the places of its logits among all."""
        index: list[int] = []
        for shape in shapes:
            stop = int(begins[shape.slot]) + shape.tokens
            self.wanted.append(slice(len(index), len(index) + shape.logits))
            index += range(stop - shape.logits, stop)
        self.logits = filled(max(len(index), 1))
        """How many rows of logits the graph gives."""
        more, more_logits = filled(total) - total, self.logits - len(index)
        self._tokens = total
        # Tokens that fill up go through the linear layers alone: no row of the attention has them.
        self._ids = np.zeros((1, total + more), np.int64)
        self._last = np.zeros(slots, np.int32)
        self._total = np.zeros(1, np.int64)
        self.inputs: dict[str, np.ndarray] = {
            "input_ids": self._ids,
            "pad_index": pad.astype(np.int64),
            "unpad_index": np.concatenate([*unpad, np.zeros(more, np.int64)]),
            "logits_index": np.asarray(index + [0] * more_logits, np.int64),
            "query_seqlens": lengths.astype(np.int32),
            "seqlens_k": self._last,
            "total_length": self._total,
        }
        """By the graph's names; `fill` changes three of them in place."""

    def fill(self, rows: Sequence[RowRun], switch: int | None) -> None:
        """Put the tokens of rows of these shapes in.

        Args:
            rows: by rising slots, all of them before LongRoPE's switch or all beyond.
            switch: how many tokens LongRoPE's short factors serve; None without LongRoPE.

        """
        self._ids[0, : self._tokens] = [token for row in rows for token in row.tokens]
        for row, shape in zip(rows, self.shapes, strict=True):
            self._last[shape.slot] = row.stop - 1
        total = max(row.stop for row in rows)
        self._total[0] = max(total, switch + 1) if switch is not None and rows[0].beyond else total


class Bound:
    """A binding of neighbouring slots of an arena, and the layout that is bound beside them."""

    def __init__(self, binding: Any) -> None:
        """Take a binding that has the cache."""
        self.binding = binding
        self._layout: RunLayout | None = None

    def lay_out(self, rows: Sequence[RowRun], slots: int, filled: Callable[[int], int]) -> RunLayout:
        """Return the layout of rows, by rising slots, and have it bound."""
        shapes = row_shapes(rows, rows[0].slot)
        if self._layout is None or self._layout.shapes != shapes:
            self._layout = RunLayout(shapes, slots, filled)
            for name, value in self._layout.inputs.items():
                self.binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
        return self._layout
