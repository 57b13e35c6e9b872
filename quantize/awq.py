"""AWQ (Lin et al., arXiv:2306.00978): input channels that matter are scaled up before rounding, then ranges clipped.

As in llm-awq, s = mean|x|^r for r = 0, 0.05 ... 0.95, clamped at 1e-4 and divided by sqrt(max * min), and the r with
the least output error stays; where that is 0, all scales are 1. In place of twenty forward passes per search stands
tr(D H D^T), with D the rounding error of the weight and H the inputs' Gram matrix: the same squared error of the same
outputs, from one pass over the samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..configs import WeightScheme
from ..configs.target import IoDtype
from .grid import fit_grid, steps
from .rounding import output_error, to_blocks

RATIOS = tuple(step / 20 for step in range(20))
# llm-awq shrinks a block's range in steps of a twentieth, and tries the first half of them: down to 0.55.
_CLIP_STEPS, _CLIP_TRIED = 20, 10
# Rows of a matrix that the clipping search handles at once.
_CLIP_ROWS = 256

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


@dataclass(frozen=True, eq=False)
class Clipped:
    """A weight whose blocks were cut off where that lowers their output error."""

    weight: Tensor
    """float32 [N, K]"""
    share: float
    """Share of the blocks that were cut, 0 to 1."""


def clip(weight: Tensor, gram: Tensor, scheme: WeightScheme, scale_dtype: IoDtype, first_row: int = 0) -> Clipped:
    """Cut the largest weights of each block to the share of their range with the least output error.

    The output error of a block alone is d H_b d^T with d its rounding error and H_b its part of the Gram matrix, which
    is what llm-awq measures on sampled inputs.

    Args:
        weight: float32 [N, K].
        gram: float32 [K, K].
        scheme: Bits, block size and symmetry of the plain rounding that follows.
        scale_dtype: Dtype in which scales will be stored.
        first_row: Rows before it stay as they are: Q and K, whose outputs meet in a product, are not clipped.

    """
    columns, size = weight.shape[1], scheme.block_size
    grams = _block_grams(gram, size)
    result = weight.clone()
    cut = total = 0
    for start in range(first_row, len(weight), _CLIP_ROWS):
        blocks = to_blocks(weight[start : start + _CLIP_ROWS], size)
        limits = _best_limits(blocks, grams, scheme, scale_dtype)
        largest = blocks.abs().amax(2)
        cut += int((limits < largest).sum())
        total += limits.numel()
        clipped = blocks.clamp_(-limits[:, :, None], limits[:, :, None])
        result[start : start + _CLIP_ROWS] = clipped.view(len(blocks), -1)[:, :columns]
    return Clipped(result, cut / total if total else 0.0)


def _best_limits(blocks: Tensor, grams: Tensor, scheme: WeightScheme, scale_dtype: IoDtype) -> Tensor:
    """Return the limit on |w| of each block, [rows, blocks]."""
    largest = blocks.abs().amax(2)
    limits, least = largest, torch.full_like(largest, torch.inf)
    for step in range(_CLIP_TRIED):
        limit = largest * (1 - step / _CLIP_STEPS)
        clamped = blocks.clamp(-limit[:, :, None], limit[:, :, None]).view(-1, scheme.block_size)
        grid = fit_grid(clamped, scheme, scale_dtype, effort="range")
        difference = blocks - (steps(clamped, grid, scheme) * grid.scales[:, None]).view_as(blocks)
        error = (torch.einsum("nbi,bij->nbj", difference, grams) * difference).sum(2)
        better = error < least
        least = torch.where(better, error, least)
        limits = torch.where(better, limit, limits)
    return limits


def _block_grams(gram: Tensor, size: int) -> Tensor:
    """Return the diagonal blocks of a Gram matrix, [blocks, size, size], the last one filled up with zeros."""
    missing = -len(gram) % size
    filled = pad(gram, (0, missing, 0, missing))
    blocks = len(filled) // size
    return filled.view(blocks, size, blocks, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
