"""How many tokens a run is filled up to, so that a token's logits are the same in every run on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

# MLAS cuts a product into stripes of so many rows (`StrideM`), and chooses the kernel for each.
_STRIPE = 128


class Padding(NamedTuple):
    """How many rows a stripe of a matrix product must have: others are filled up."""

    least: int
    multiple: int

    def missing(self, count: int) -> int:
        """Return how many tokens fill up a run."""
        rest = count % _STRIPE
        filled = max(rest, self.least) if rest else 0
        return filled + -filled % self.multiple - rest


PADDINGS = (Padding(1, 1), Padding(2, 1), Padding(2, 2), Padding(4, 4))
"""Cheapest first. AVX2 has a kernel of its own for one row; AVX-512 one for an odd last row, not at blocks of 32."""


@dataclass(frozen=True)
class Trial:
    """What trying a graph out on a machine showed."""

    padding: Padding | None
    """What makes a token's logits the same in every run; None where nothing does."""
    seconds: Mapping[int, float] = field(default_factory=dict)
    """What a step of so many tokens took at its best, while a text is short."""
