"""Memory for the keys and values of several texts in slots of one length, on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .pages import lazy_zeros


@dataclass(frozen=True)
class CacheShape:
    """What one layer keeps of a token."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: Any
    """numpy dtype of keys and values."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * np.dtype(self.dtype).itemsize


class Arena:
    """Keys and values of every layer, [slots, KV heads, length, head size] each.

    Memory is taken as it is written to: the operating system gives no page before. So a slot costs what it holds.
    """

    def __init__(self, shape: CacheShape, slots: int, capacity: int, longest_row: int = 0) -> None:
        """Reserve the address space.

        Args:
            shape: of one token's keys and values.
            slots: texts to have room for.
            capacity: tokens of each.
            longest_row: new tokens that a run may have of another text: attention takes all rows for as long as its
                longest, and refuses one that would end behind the memory then.

        Raises:
            MemoryError: the system gives none.

        """
        self.shape = shape
        self.slots = slots
        self.capacity = capacity
        self.longest_row = longest_row
        self.buffers = [self._zeros(slots, self.length) for _ in range(2 * shape.layers)]
        """Keys and values of each layer in turn."""
        self.bindings: dict[tuple[int, int], Any] = {}
        """What a graph keeps of runs on (first slot, slots); forgotten when the memory moves."""

    @property
    def length(self) -> int:
        """Tokens that each slot has memory for."""
        return self.capacity + self.longest_row

    def grow(self, slots: int, capacity: int, lengths: Sequence[int]) -> None:
        """Make room for more slots or longer texts.

        Args:
            slots: texts to have room for, at least as many as now.
            capacity: tokens of each, at least as many as now.
            lengths: tokens that each slot holds, and that are kept; [slots now].

        """
        for index, old in enumerate(self.buffers):
            new = self._zeros(slots, capacity + self.longest_row)
            for slot, length in enumerate(lengths):
                new[slot, :, :length] = old[slot, :, :length]
            self.buffers[index] = new  # one layer's at a time is there twice
        self.slots, self.capacity = slots, capacity
        self.bindings.clear()

    def copy(self, source: int, target: int, length: int, start: int = 0) -> None:
        """Copy the tokens from `start` up to `length` of one slot to the same places of another."""
        for buffer in self.buffers:
            buffer[target, :, start:length] = buffer[source, :, start:length]

    def take_out(self, slot: int, length: int) -> np.ndarray:
        """Return a copy of a slot's first tokens, [keys and values of each layer, KV heads, length, head size]."""
        return np.stack([buffer[slot, :, :length] for buffer in self.buffers])

    def put_in(self, slot: int, kept: np.ndarray, length: int) -> None:
        """Write the first tokens of what `take_out` returned into a slot."""
        for buffer, values in zip(self.buffers, kept, strict=True):
            buffer[slot, :, :length] = values[:, :length]

    def _zeros(self, slots: int, length: int) -> np.ndarray:
        return lazy_zeros((slots, self.shape.kv_heads, length, self.shape.head_dim), self.shape.dtype)
