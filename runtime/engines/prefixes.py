"""Texts whose keys and values are in memory, and what a new one can take over from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(eq=False)
class Kept:
    """A text whose keys and values lie outside the arena."""

    tokens: tuple[int, ...]
    beyond: bool
    """Whether they were made with LongRoPE's long factors."""
    arrays: Sequence[np.ndarray] = field(repr=False, default=())
    """As `Arena.take_out` returns them."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)


class PrefixStore:
    """Texts that were moved out of the arena, within a bound of bytes; the longest unused goes first."""

    def __init__(self, limit: int) -> None:
        """Begin empty, to hold `limit` bytes at most."""
        self.limit = limit
        self._kept: list[Kept] = []  # the longest unused first
        self.num_bytes = 0
        """Bytes that it holds."""

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._kept)

    def add(self, kept: Kept) -> None:
        """Keep a text, and give up others for it; one that is larger than the bound is not kept."""
        size = kept.num_bytes
        if size > self.limit:
            return
        while self.num_bytes + size > self.limit:
            self.give_up_one()
        self._kept.append(kept)
        self.num_bytes += size

    def use(self, kept: Kept) -> None:
        """Note that a text was of use."""
        self._kept.remove(kept)
        self._kept.append(kept)

    def give_up_one(self) -> bool:
        """Forget the longest unused text; return whether there was one."""
        if not self._kept:
            return False
        self.num_bytes -= self._kept.pop(0).num_bytes
        return True

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self.num_bytes = 0
