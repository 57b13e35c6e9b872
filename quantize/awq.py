"""AWQ (Lin et al., arXiv:2306.00978): input channels that matter are scaled up before rounding.

As in llm-awq, s = mean|x|^r for r = 0, 0.05 ... 0.95, clamped at 1e-4 and divided by sqrt(max * min), and the r with
the least output error stays; where that is 0, all scales are 1. In place of twenty forward passes per search stands
tr(D H D^T), with D the rounding error of the weight and H the inputs' Gram matrix: the same squared error of the same
outputs, from one pass over the samples. llm-awq then clips the range of each block; here its grid is fitted to the same
error (grid.py), which measured better (NOTES.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .rounding import output_error

RATIOS = tuple(step / 20 for step in range(20))

Rounding = Callable[[Tensor, Tensor], Tensor]
"""Scaled weight [N, K] and the Gram matrix of the scaled inputs [K, K] -> the weight after rounding, [N, K]."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """What the search chose for the input channels of some linear layers."""

    scale: Tensor
    """float32 [K]: columns of the weights are multiplied by it, the inputs divided."""
    ratio: float
    """r; 0 where plain rounding was not beaten."""
    gain: float
    """Output error at r as a share of that without scales."""


def channel_scales(mean_abs: Tensor, ratio: float) -> Tensor:
    """Return mean|x|^r as llm-awq clamps and normalizes it, float32 [K]; all 1 for r = 0."""
    scale = mean_abs.pow(ratio).clamp(min=1e-4)
    return scale / (scale.max() * scale.min()).sqrt()


def search_scaling(
    weights: Sequence[Tensor],
    gram: Tensor,
    mean_abs: Tensor,
    rounding: Rounding,
    ratios: Sequence[float] = RATIOS,
) -> Scaling:
    """Find the scales of input channels that linear layers share.

    Args:
        weights: Their weights, float32 [N, K] each.
        gram: float32 [K, K], the mean over tokens of x x^T.
        mean_abs: float32 [K], the mean over tokens of |x|.
        rounding: What rounds the scaled weights.
        ratios: Values of r to try.

    """
    best = Scaling(torch.ones_like(mean_abs), 0.0, 1.0)
    unscaled = sum(output_error(weight - rounding(weight, gram), gram) for weight in weights)
    least = unscaled
    for ratio in ratios:
        if ratio == 0:
            continue
        scale = channel_scales(mean_abs, ratio)
        scaled_gram = scale_gram(gram, scale)
        error = 0.0
        for weight in weights:
            scaled = weight * scale
            error += output_error(scaled - rounding(scaled, scaled_gram), scaled_gram)
        if error < least:
            least = error
            best = Scaling(scale, ratio, error / unscaled)
    return best


def scale_gram(gram: Tensor, scale: Tensor) -> Tensor:
    """Return the Gram matrix of inputs that were divided by `scale`, [K, K]."""
    inverse = 1 / scale
    return gram * inverse[:, None] * inverse
