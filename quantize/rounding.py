"""A whole matrix on the grids of its blocks, as tensors: what the data-aware methods work on until it is packed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from ..configs import WeightScheme
from ..configs.target import IoDtype
from .grid import Effort, fit_grid, steps
from .packed import QuantizedWeight, pack

# Weights handled at once: the buffers of a search stay in the processor's caches (a quarter of the time is gone in
# memory with sixteen times as many).
_CHUNK = 1 << 18


@dataclass(frozen=True, eq=False)
class Rounded:
    """A matrix [N, K] as signed steps and the grid of each block."""

    steps: torch.Tensor
    """float32 [N, K], whole numbers: code - zero point."""
    scales: torch.Tensor
    """float32 [N, blocks], rounded to the dtype in which they will be stored."""
    zeros: torch.Tensor | None
    """float32 [N, blocks], whole numbers; None for a symmetric scheme."""
    scheme: WeightScheme

    def dequantize(self) -> torch.Tensor:
        """Return the weights as float32 [N, K]."""
        return self.steps * expand(self.scales, self.scheme.block_size, self.steps.shape[1])

    def pack(self) -> QuantizedWeight:
        """Return the same in the layout of ONNX Runtime's operators."""
        codes = to_blocks(self.steps, self.scheme.block_size)
        codes += (1 << (self.scheme.bits - 1)) if self.zeros is None else self.zeros[:, :, None]
        zeros = None if self.zeros is None else self.zeros.to(torch.uint8).numpy()
        return pack(codes.to(torch.uint8).numpy(), self.scales.numpy(), zeros, self.scheme, self.steps.shape[1])


def stack(parts: Sequence[Rounded]) -> Rounded:
    """Put matrices of the same columns and scheme on top of each other."""
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return Rounded(
        torch.cat([part.steps for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(zeros) if zeros else None,
        parts[0].scheme,
    )


def to_blocks(matrix: torch.Tensor, block_size: int) -> torch.Tensor:
    """Return a matrix [N, K] as a new tensor [N, blocks, block size], the last block filled up with zeros."""
    rows, columns = matrix.shape
    return pad(matrix, (0, -columns % block_size)).view(rows, -1, block_size).clone()


def expand(per_block: torch.Tensor, block_size: int, columns: int) -> torch.Tensor:
    """Return [N, blocks] as [N, K], each value repeated for the columns of its block."""
    return per_block.repeat_interleave(block_size, dim=1)[:, :columns]


def round_matrix(
    weight: torch.Tensor,
    scheme: WeightScheme,
    scale_dtype: IoDtype,
    importance: torch.Tensor | None = None,
    effort: Effort = "fast",
) -> Rounded:
    """Round a matrix to the best grids that `fit_grid` finds.

    Args:
        weight: float32 [N, K].
        scheme: Bits, block size and symmetry.
        scale_dtype: Dtype in which scales will be stored.
        importance: float32 [K], the weight of a squared error in each column; None as in `fit_grid`.
        effort: How many grids to try.

    """
    rows, columns = weight.shape
    blocks = -(-columns // scheme.block_size)
    taken = torch.empty(rows, columns)
    scales = torch.empty(rows, blocks)
    zeros = None if scheme.symmetric else torch.empty(rows, blocks)
    by_block = None if importance is None else to_blocks(importance[None], scheme.block_size)
    step = max(1, _CHUNK // (blocks * scheme.block_size))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        chunk = to_blocks(weight[part], scheme.block_size)
        each = None if by_block is None else by_block.expand_as(chunk).reshape(-1, scheme.block_size)
        flat = chunk.view(-1, scheme.block_size)
        grid = fit_grid(flat, scheme, scale_dtype, each, effort)
        taken[part] = steps(flat, grid, scheme).view(len(chunk), -1)[:, :columns]
        scales[part] = grid.scales.view(-1, blocks)
        if zeros is not None and grid.zeros is not None:
            zeros[part] = grid.zeros.view(-1, blocks)
    return Rounded(taken, scales, zeros, scheme)


def column_importance(gram: torch.Tensor) -> torch.Tensor:
    """Return what a squared error costs in each column, float32 [K], from the mean over tokens of x x^T, [K, K].

    Inputs that calibration hardly saw keep a small weight: their columns are not thrown away.
    """
    diagonal = gram.diagonal()
    return diagonal + 0.01 * diagonal.mean()


def output_error(difference: torch.Tensor, gram: torch.Tensor) -> float:
    """Return tr(D H D^T): the mean squared error of the outputs of a linear layer, summed over outputs.

    Args:
        difference: float32 [N, K], weights minus what is stored.
        gram: float32 [K, K], the mean over tokens of x x^T.

    """
    total = 0.0
    # In slices of rows: the product needs no second matrix of the weight's size, and float64 adds up the slices.
    for part in difference.split(1024):
        total += float(((part @ gram) * part).sum(dtype=torch.float64))
    return total
