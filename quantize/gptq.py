"""GPTQ (Frantar et al., arXiv:2210.17323): round one column after the other, correct the columns still to come.

With H the Gram matrix of the inputs and U the upper triangular factor of its inverse (H^-1 = U^T U), rounding column j
with error e leaves the least output error when the columns k after it take up -e U[j, k] / U[j, j].
"""

import logging
from typing import Literal

import torch
from torch import Tensor

from ..configs import WeightScheme
from ..configs.target import IoDtype
from .grid import fit_grid
from .rounding import Rounded, column_importance, round_matrix, stack, to_blocks

_log = logging.getLogger(__name__)

Order = Literal["importance", "storage"]
"""`importance`: columns with the largest inputs first, on grids fitted beforehand ("act order" with "static groups":
the packed layout has no index of groups). `storage`: left to right, each block's grid fitted when its turn comes."""

# Columns whose corrections are applied to each other at once and to the rest in one product ("lazy batches").
_LAZY = 128
# The same within a lazy batch; a divisor of every block size, so that a block's grid is fitted on corrected columns.
_NEAR = 16
_MOST_DAMPING = 1.0
# Rows are independent of each other: of so many, the columns of a lazy batch (1 MB) stay in a core's own cache.
_ROWS = 2048


def gptq(
    weight: Tensor,
    gram: Tensor,
    scheme: WeightScheme,
    scale_dtype: IoDtype,
    *,
    order: Order = "importance",
    damping: float = 0.01,
) -> Rounded:
    """Quantize a matrix so that the squared error of its outputs stays small.

    Takes about 3 K^2 * 8 bytes for the factor and twice the weight, beside the arguments.

    Args:
        weight: float32 [N, K].
        gram: float32 [K, K], the mean over tokens of x x^T.
        scheme: Bits, block size and symmetry.
        scale_dtype: Dtype in which scales will be stored.
        order: Order of the columns.
        damping: What is added to the diagonal of the Gram matrix, as a share of its mean. A matrix that is not
            positive definite even so gets more.

    Raises:
        ValueError: the Gram matrix holds NaN or infinite values.

    """
    importance = column_importance(gram)
    if order == "storage":
        columns, factor = torch.arange(len(gram)), inverse_factor(gram, damping)
    else:
        columns = importance.argsort(descending=True, stable=True)
        factor = inverse_factor(gram[columns][:, columns], damping)
    parts: list[Rounded] = []
    for rows in weight.split(_ROWS):
        grids = round_matrix(rows, scheme, scale_dtype, importance, "thorough") if order == "importance" else importance
        parts.append(_Sweep(rows, factor, columns, scheme, scale_dtype, grids).run())
    return stack(parts)


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """Return the upper triangular U with U^T U = (gram + damping * mean of its diagonal * I)^-1, as float32 [K, K].

    The reversed matrix is factored instead of the inverse, which is never formed.

    Raises:
        ValueError: no damping up to the diagonal's own mean makes the matrix positive definite.

    """
    reverse = gram.flip(0, 1).double()
    diagonal = reverse.diagonal()
    # An input that is always zero says nothing of its column; any positive value leaves it out of the corrections.
    mean = diagonal.mean().clamp_min(1e-12)
    diagonal[diagonal == 0] = mean
    while True:
        diagonal += damping * mean
        lower, failed = torch.linalg.cholesky_ex(reverse)
        if not failed and bool(torch.isfinite(lower.diagonal()).all()):
            break
        if not damping <= _MOST_DAMPING:
            raise ValueError("a Gram matrix is not positive definite: some inputs are NaN or infinite")
        _log.debug("damping %g is not enough for a Gram matrix of %d columns", damping, len(gram))
        damping *= 10
    del reverse, diagonal
    # gram = (P L P) (P L P)^T with P the reversal, and P L P is upper triangular: its inverse is the factor.
    identity = torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True).float()


class _Sweep:
    """One pass over the columns. Matrices lie transposed, [K, N]: the columns of the weight are contiguous."""

    def __init__(
        self,
        weight: Tensor,
        factor: Tensor,
        columns: Tensor,
        scheme: WeightScheme,
        scale_dtype: IoDtype,
        grids: Rounded | Tensor,
    ) -> None:
        """Take grids that are fixed, or the importance of columns to fit them by as the sweep reaches them."""
        self._rest = weight.T[columns].contiguous()
        self._factor = factor
        self._columns = columns
        self._scheme = scheme
        self._scale_dtype: IoDtype = scale_dtype
        self._importance = grids if isinstance(grids, Tensor) else None
        if isinstance(grids, Rounded):
            self._scales = grids.scales.T.contiguous()
            self._zeros = None if grids.zeros is None else grids.zeros.T.contiguous()
        else:
            rows, width = weight.shape
            blocks = -(-width // scheme.block_size)
            self._scales = torch.empty(blocks, rows)
            self._zeros = None if scheme.symmetric else torch.empty(blocks, rows)

    def run(self) -> Rounded:
        """Round all columns; returns them in the order of storage."""
        width = len(self._rest)
        # A whole number of blocks, so that a block's grid can be fitted when all earlier corrections have arrived.
        step = max(_LAZY, self._scheme.block_size)
        for start in range(0, width, step):
            end = min(start + step, width)
            errors = self._round_columns(start, end)
            if end < width:
                self._rest[end:].addmm_(self._factor[start:end, end:].T, errors, alpha=-1)
        taken = torch.empty_like(self._rest)
        taken[self._columns] = self._rest
        zeros = None if self._zeros is None else self._zeros.T.contiguous()
        return Rounded(taken.T.contiguous(), self._scales.T.contiguous(), zeros, self._scheme)

    def _round_columns(self, start: int, end: int) -> Tensor:
        """Put the steps of some columns in their place; return what the columns after `end` have to take up."""
        part = self._rest[start:end]
        errors = torch.empty_like(part)
        size = self._scheme.block_size
        for i, column in enumerate(self._columns[start:end].tolist()):
            block = column // size
            if self._importance is not None and column % size == 0:
                self._fit(block, part[i : i + size].T, self._importance[column : column + size])
            scale = self._scales[block]
            taken = _nearest(part[i], scale, None if self._zeros is None else self._zeros[block], self._scheme)
            # Corrections reach the next few columns at once, and the rest of the batch in one product for them all:
            # products are far faster than as many updates by one column.
            near = min(i - i % _NEAR + _NEAR, len(part))
            pivots = self._factor[start + i, start + i : start + near]
            torch.sub(part[i], taken * scale, out=errors[i]).div_(pivots[0])
            part[i + 1 : near].addcmul_(pivots[1:, None], errors[i], value=-1)
            part[i] = taken
            if i + 1 == near < len(part):
                done = slice(i - i % _NEAR, near)
                far = self._factor[start + done.start : start + near, start + near : end]
                part[near:].addmm_(far.T, errors[done], alpha=-1)
        return errors

    def _fit(self, block: int, weights: Tensor, importance: Tensor) -> None:
        filled = to_blocks(weights, self._scheme.block_size)[:, 0]
        each = to_blocks(importance[None], self._scheme.block_size)[0]
        grid = fit_grid(filled, self._scheme, self._scale_dtype, each, "thorough")
        self._scales[block] = grid.scales
        if self._zeros is not None and grid.zeros is not None:
            self._zeros[block] = grid.zeros


def _nearest(weights: Tensor, scale: Tensor, zero: Tensor | None, scheme: WeightScheme) -> Tensor:
    """Return the nearest steps for one weight of each row, all [N]."""
    taken = (weights * torch.reciprocal(scale).nan_to_num_(posinf=0.0, neginf=0.0)).round_()
    top = (1 << scheme.bits) - 1
    if zero is None:
        middle = (top + 1) // 2
        return taken.clamp_(-middle, top - middle)
    return torch.minimum(torch.maximum(taken, -zero, out=taken), top - zero, out=taken)
