"""The grid of one block of weights: which scale (and zero point) loses the least, and which code each weight gets.

A weight w becomes the step q = clamp(round(w / scale), -zero, top - zero), its code is q + zero, and it comes back as
q * scale. For given steps the scale with the least squared error is sum(w q) / sum(q q), and what it saves against
storing zeros is sum(w q)^2 / sum(q q): that is what the candidates here are compared by.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..configs import WeightScheme
from ..configs.target import IoDtype

# Factors on the scale that would just reach a block's largest weight. On the linears of a trained 135 M model, four of
# them and one refinement come within 1% of the squared error of sixty (blocks of 32 and 128); see NOTES.md.
_SYMMETRIC_FACTORS = (1.05, 0.98, 0.91, 0.84)
_ASYMMETRIC_FACTORS = (1.0, 0.95, 0.88)
_THOROUGH_FACTORS = (1.05, 1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)
# With 256 levels the largest weight decides: no candidate but the full range is ever worth its time.
_FULL_RANGE = (1.0,)


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
    *,
    thorough: bool = False,
) -> Grid:
    """Return the grid of each block with the least (weighted) squared error among some candidates.

    Args:
        blocks: float32 [blocks, block size].
        scheme: Bits and symmetry.
        scale_dtype: Dtype in which scales will be stored; the returned ones are rounded to it.
        importance: float32 [blocks or 1, block size], the weight of each squared error; None counts all alike.
        thorough: Try several times as many candidates: for methods that spend far more on each weight anyway.

    """
    best_gain = best_scale = best_zero = None
    for scale, zero in _candidates(blocks, scheme, thorough):
        refined, gain = _refine(blocks, _steps(blocks, scale, zero, scheme), importance)
        if best_gain is None or best_scale is None:
            best_gain, best_scale, best_zero = gain, refined, zero
            continue
        better = gain > best_gain
        best_gain = torch.maximum(gain, best_gain)
        best_scale = torch.where(better, refined, best_scale)
        if best_zero is not None and zero is not None:
            best_zero = torch.where(better, zero, best_zero)
    assert best_scale is not None  # there is always a candidate
    for _ in range(3 if thorough else 1):
        best_scale, _gain = _refine(blocks, _steps(blocks, best_scale, best_zero, scheme), importance)
    return Grid(round_scales(best_scale, scale_dtype), best_zero)


def round_scales(scales: torch.Tensor, scale_dtype: IoDtype) -> torch.Tensor:
    """Return float32 scales as they will be once stored in `scale_dtype`."""
    return scales.half().float() if scale_dtype == "float16" else scales


def steps(blocks: torch.Tensor, grid: Grid, scheme: WeightScheme) -> torch.Tensor:
    """Return the signed steps (code - zero point) of each weight, as float32 [blocks, block size]."""
    return _steps(blocks, grid.scales, grid.zeros, scheme)


def _candidates(
    blocks: torch.Tensor, scheme: WeightScheme, thorough: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    levels = 1 << scheme.bits
    high, low = blocks.amax(1), blocks.amin(1)
    if scheme.symmetric:
        # The codes reach one step further down than up, so the scale's sign sends the largest weight there.
        base = torch.where(high > -low, high, low) * (-2 / levels)
        factors = _FULL_RANGE if scheme.bits == 8 else _THOROUGH_FACTORS if thorough else _SYMMETRIC_FACTORS
        for factor in factors:
            yield base * factor, None
        return
    high.clamp_(min=0)
    low.clamp_(max=0)
    factors = _FULL_RANGE if scheme.bits == 8 else _THOROUGH_FACTORS[1:] if thorough else _ASYMMETRIC_FACTORS
    base = (high - low) / (levels - 1)
    zero = (low * -_inverse(base)).round_()
    for shift in (0, -1, 1) if thorough else (0,):
        shifted = (zero + shift).clamp_(0, levels - 1)
        for factor in factors:
            yield base * factor, shifted


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    # A block of zeros has scale 0; all its steps are to be 0, whatever the scale.
    return torch.where(scale == 0, 0.0, 1 / scale)


def _steps(blocks: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, scheme: WeightScheme) -> torch.Tensor:
    result = torch.mul(blocks, _inverse(scale)[:, None]).round_()
    top = (1 << scheme.bits) - 1
    if zero is None:
        middle = (top + 1) // 2
        return result.clamp_(-middle, top - middle)
    zero = zero[:, None]
    return torch.clamp_(result, -zero, top - zero)


def _refine(
    blocks: torch.Tensor, taken: torch.Tensor, importance: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best scale for these steps, [blocks], and what it saves against all zeros; changes `taken`."""
    weighted = taken if importance is None else taken * importance
    along = torch.mul(blocks, weighted).sum(1)
    squares = taken.mul_(weighted).sum(1)
    scale = torch.where(squares == 0, 0.0, along / squares)
    return scale, scale * along
