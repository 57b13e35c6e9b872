"""Round to nearest: each block by itself, without data, as fast as the memory allows.

"Nearest" with care: of a few scales each block takes the one with the least error, large weights counting for more, and
codes are chosen against the scale as it will be stored.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from ..configs import WeightScheme
from ..configs.target import IoDtype
from .grid import fit_grid, steps
from .packed import QuantizedWeight, pack_codes, packed_shapes

# Weights handled at once by a thread: the handful of float32 buffers of this size stay in a core's own cache.
_CHUNK = 1 << 17


def quantize_rtn(
    weight: np.ndarray, scheme: WeightScheme, scale_dtype: IoDtype = "float32", threads: int | None = None
) -> QuantizedWeight:
    """Quantize a matrix without data.

    Blocks are independent of each other: any split of the rows into several calls gives the same result, and so does
    any number of threads. Takes about 2 MB per thread beside the input and the result.

    Args:
        weight: float32 [N, K], finite.
        scheme: Bits, block size and symmetry.
        scale_dtype: Dtype in which the graph stores the scales.
        threads: Threads to use; None takes as many as torch would.

    """
    rows, columns = weight.shape
    shapes = packed_shapes(rows, columns, scheme)
    packed = np.empty(shapes.packed, np.uint8)
    scales = np.empty(shapes.scales, np.float32)
    zeros = None if shapes.zero_points is None else np.empty(shapes.zero_points, np.uint8)
    result = QuantizedWeight(packed, scales, zeros, scheme, (rows, columns))
    step = max(1, _CHUNK // (shapes.scales[1] * scheme.block_size))
    fill = partial(_fill, weight, result, scale_dtype, step)
    threads = torch.get_num_threads() if threads is None else threads
    with ThreadPoolExecutor(threads, initializer=_single_threaded) as pool:
        lost = sum(pool.map(fill, range(0, rows, step)))
    return replace(result, squared_error=lost)


def _single_threaded() -> None:
    # The chunks are shared out among our own threads; torch's would only wait for each other on pieces this small.
    torch.set_num_threads(1)


def _fill(weight: np.ndarray, result: QuantizedWeight, scale_dtype: IoDtype, step: int, start: int) -> float:
    """Quantize some rows in their place in `result`; return the sum of their squared errors."""
    scheme, columns = result.scheme, weight.shape[1]
    rows = slice(start, start + step)
    chunk = torch.from_numpy(np.ascontiguousarray(weight[rows]))
    blocks = result.scales.shape[1]
    if padding := blocks * scheme.block_size - columns:
        # Zeros are on every grid, so they change no scale and get the zero point's code.
        chunk = torch.nn.functional.pad(chunk, (0, padding))
    chunk = chunk.view(-1, scheme.block_size)
    grid = fit_grid(chunk, scheme, scale_dtype)
    taken = steps(chunk, grid, scheme)
    lost = torch.addcmul(chunk, taken, grid.scales[:, None], value=-1).view(-1)
    taken += (1 << (scheme.bits - 1)) if grid.zeros is None else grid.zeros[:, None]
    result.packed[rows] = pack_codes(taken.to(torch.uint8).numpy(), scheme.bits).reshape(-1, *result.packed.shape[1:])
    result.scales[rows] = grid.scales.numpy().reshape(-1, blocks)
    if result.zero_points is not None and grid.zeros is not None:
        result.zero_points[rows] = pack_codes(grid.zeros.to(torch.uint8).numpy().reshape(-1, blocks), scheme.bits)
    return float(lost @ lost)
