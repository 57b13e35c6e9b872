"""The grid of one block of weights: which scale (and zero point) loses the least, and which code each weight gets.

A weight w becomes the step q = clamp(round(w / scale), -zero, top - zero), its code is q + zero, and it comes back as
q * scale. For given steps the scale with the least squared error is sum(w q) / sum(q q), and what it saves against
storing zeros is sum(w q)^2 / sum(q q): that is what the candidates here are compared by, each term weighted by what an
error of this weight costs. Calibration tells that. Without it the weight's own size is a better guess than that all
cost the same, which cuts off large weights too readily (KL lower by 8 to 36%, NOTES.md).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from ..configs import WeightScheme
from ..configs.target import IoDtype

# Factors on the scale that would just reach a block's largest weight: a few that do about as well as many (NOTES.md).
# What calibration says of a block may be worth cutting off its largest weight; without it, little is.
_SYMMETRIC_FACTORS, _SYMMETRIC_FACTORS_BLIND = (1.05, 0.95, 0.85), (1.0, 0.93)
_ASYMMETRIC_FACTORS, _ASYMMETRIC_FACTORS_BLIND = (1.0, 0.95, 0.88), (1.0, 0.95)
_THOROUGH_FACTORS = (1.05, 1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)
# With 256 levels the largest weight decides: no candidate but the full range is ever worth its time.
_FULL_RANGE = (1.0,)
_TINY = 1e-30

Effort = Literal["fast", "thorough"]
"""`fast`: a few scales, for speed; `thorough`: several times as many, for methods that spend far more time on each
weight anyway."""


@dataclass(frozen=True)
class Grid:
    """The grids of some blocks."""

    scales: torch.Tensor
    """float32 [blocks], rounded to the dtype in which they will be stored. Negative ones are as good as others."""
    zeros: torch.Tensor | None
    """float32 [blocks], whole numbers; None for a symmetric scheme, whose zero is the middle of the codes."""


def fit_grid(
    blocks: torch.Tensor,
    scheme: WeightScheme,
    scale_dtype: IoDtype,
    importance: torch.Tensor | None = None,
    effort: Effort = "fast",
) -> Grid:
    """Return the grid of each block with the least (weighted) squared error among some candidates.

    Args:
        blocks: float32 [blocks, block size].
        scheme: Bits and symmetry.
        scale_dtype: Dtype in which scales will be stored; the returned ones are rounded to it.
        importance: float32 [blocks or 1, block size], the weight of each squared error; None takes each weight's size.
        effort: How many candidates to try.

    """
    scales, zeros = _candidates(blocks, scheme, effort, blind=importance is None)
    search = _Search(blocks, scheme, importance)
    scales, zeros = _best(*search.refine(scales, zeros), zeros)
    for _ in range(3 if effort == "thorough" else 0):
        scales, _ = search.refine(scales, zeros)
    return Grid(round_scales(scales[0], scale_dtype), None if zeros is None else zeros[0])


def _best(
    scales: torch.Tensor, gains: torch.Tensor, zeros: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the candidate of each block that saves the most, [1, blocks] each.

    One comparison a candidate: reductions over so short a first axis take several times as long.
    """
    most, best = gains[0], scales[0]
    zero = None if zeros is None else zeros[0]
    for i in range(1, len(gains)):
        better = gains[i] > most
        most = torch.where(better, gains[i], most)
        best = torch.where(better, scales[i], best)
        if zeros is not None and zero is not None:
            zero = torch.where(better, zeros[i], zero)
    return best[None], None if zero is None else zero[None]


def round_scales(scales: torch.Tensor, scale_dtype: IoDtype) -> torch.Tensor:
    """Return float32 scales as they will be once stored in `scale_dtype`."""
    return scales.half().float() if scale_dtype == "float16" else scales


def steps(blocks: torch.Tensor, grid: Grid, scheme: WeightScheme) -> torch.Tensor:
    """Return the signed steps (code - zero point) of each weight, as float32 [blocks, block size]."""
    return _steps(blocks, _inverse(grid.scales), grid.zeros, scheme, torch.empty_like(blocks))


class _Search:
    """Refines scales of the same blocks again and again, in the same two buffers (fresh ones cost page faults)."""

    def __init__(self, blocks: torch.Tensor, scheme: WeightScheme, importance: torch.Tensor | None) -> None:
        self._blocks = blocks
        self._scheme = scheme
        self._importance = blocks.abs() if importance is None else importance
        self._weighted = blocks * self._importance
        self._taken = torch.empty_like(blocks)
        self._product = torch.empty_like(blocks)

    def refine(self, scales: torch.Tensor, zeros: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the steps at each candidate's scale; return the best scale for these steps, and what it saves.

        All are float32 [candidates, blocks].
        """
        inverses = _inverse(scales)
        along, squares = torch.empty_like(scales), torch.empty_like(scales)
        # Only whole-chunk operations in the loop: at this size each operation on [blocks] costs as much to start.
        for i in range(len(scales)):
            self._sums(inverses[i], None if zeros is None else zeros[i], along[i], squares[i])
        best = along / squares.clamp_(min=_TINY)
        return best, best * along

    def _sums(
        self, inverse: torch.Tensor, zero: torch.Tensor | None, along: torch.Tensor, squares: torch.Tensor
    ) -> None:
        taken = _steps(self._blocks, inverse, zero, self._scheme, self._taken)
        product = torch.mul(self._weighted, taken, out=self._product)
        torch.sum(product, 1, out=along)
        product = torch.mul(taken, taken, out=product).mul_(self._importance)
        torch.sum(product, 1, out=squares)


def _candidates(
    blocks: torch.Tensor, scheme: WeightScheme, effort: Effort, *, blind: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return scales to try and their zero points, both [candidates, blocks]."""
    levels = 1 << scheme.bits
    high, low = blocks.amax(1), blocks.amin(1)
    factors = _THOROUGH_FACTORS
    if scheme.bits == 8:
        factors = _FULL_RANGE
    elif effort == "fast" and scheme.symmetric:
        factors = _SYMMETRIC_FACTORS_BLIND if blind else _SYMMETRIC_FACTORS
    elif effort == "fast":
        factors = _ASYMMETRIC_FACTORS_BLIND if blind else _ASYMMETRIC_FACTORS
    if scheme.symmetric:
        # The codes reach one step further down than up, so the scale's sign sends the largest weight there.
        base = torch.where(high > -low, high, low) * (-2 / levels)
        return torch.outer(base.new_tensor(factors), base), None
    high.clamp_(min=0)
    low.clamp_(max=0)
    base = (high - low) / (levels - 1)
    zero = (low * -_inverse(base)).round_()
    shifts = base.new_tensor((0.0, -1.0, 1.0) if effort == "thorough" else (0.0,))
    zeros = (zero + shifts[:, None]).clamp_(0, levels - 1).repeat_interleave(len(factors), 0)
    return torch.outer(base.new_tensor(factors).repeat(len(shifts)), base), zeros


def _inverse(scales: torch.Tensor) -> torch.Tensor:
    # A block of zeros has scale 0: all its steps are to be 0.
    return torch.reciprocal(scales).nan_to_num_(posinf=0.0, neginf=0.0)


def _steps(
    blocks: torch.Tensor, inverse: torch.Tensor, zero: torch.Tensor | None, scheme: WeightScheme, out: torch.Tensor
) -> torch.Tensor:
    torch.mul(blocks, inverse[:, None], out=out).round_()
    top = (1 << scheme.bits) - 1
    if zero is None:
        middle = (top + 1) // 2
        return out.clamp_(-middle, top - middle)
    # Five times as fast as clamp_ with bounds that are tensors.
    torch.maximum(out, -zero[:, None], out=out)
    return torch.minimum(out, top - zero[:, None], out=out)
