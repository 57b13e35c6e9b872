"""Whether each block of a package's weights is the checkpoint's: finds one wrong scale among millions.

For every block of weights that shares a scale, the factor f that brings the stored block closest to the checkpoint's
(least squares) is 1 but for rounding. On the small real model in int4, block 32, it lies between 0.95 and 1.10; a
scale that is twice too large makes it 0.5, weights from elsewhere make it about 0.

AWQ multiplies the columns of a matrix and divides the norm before it, or the rows of the matrix before it (V before the
output projection, up before down). There the factors of columns and rows are estimated first, so that only what differs
from block to block counts, and norms are left to the comparison of logits.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ...configs import Manifest
from ...configs.progress import Counter, Progress
from ...export.sources.checkpoint import Checkpoint
from .finding import Finding
from .stored import StoredWeights

_CHUNK_VALUES = 4 << 20
"""Weights compared at a time: 16 MB for each array in work."""
_PLAIN_BLOCK = 128
"""Columns taken together in a matrix that is not quantized."""
_PLAIN, _ROUNDED, _CALIBRATED = 1.001, 1.25, 2.0
"""Largest factor, or 1 / the smallest: float16 rounds by 2^-11; rounding to nearest was measured at 1.10; clipping may
halve a block's outlier."""
_NEGLIGIBLE = 1e-3
"""A block stored as zeros may have this much of the matrix's root mean square."""
_SCALED_ROWS = ("qkv_proj.weight", "gate_up_proj.weight")
"""Matrices whose rows AWQ may divide."""
_NAMED = 3
"""Blocks named for one tensor at most."""


@dataclass
class _Block:
    """The worst blocks of one tensor."""

    count: int = 0
    wrong: int = 0
    named: list[str] = field(default_factory=list)


def compare_weights(
    stored: StoredWeights, manifest: Manifest, checkpoint: Checkpoint, *, progress: Progress
) -> Finding:
    """Compare every weight of a package with its checkpoint's, in two streamed passes.

    Args:
        stored: the package's weights.
        manifest: its manifest.
        checkpoint: what it was made from.
        progress: called before each tensor.

    Raises:
        PackageError: a tensor is missing, or the data file is damaged.
        SourceError: a tensor of the checkpoint cannot be read.

    """
    quantization = manifest.target.quantization
    calibrated = quantization is not None and quantization.method != "rtn"
    differences: list[str] = []
    compared = blocks = 0
    shapes = checkpoint.config.tensor_shapes()
    counter = Counter(progress, "comparing weights", len(shapes), "tensors")
    for name, shape in shapes.items():
        counter.add(1)
        if len(shape) == 1 and calibrated:
            continue
        found = _compare(_Pair(stored, checkpoint, manifest, name, shape, calibrated))
        compared, blocks = compared + 1, blocks + found.count
        if found.wrong:
            differences.append(f"{name}: {found.wrong} of {found.count} blocks differ: {', '.join(found.named)}")
    return Finding(compared, tuple(differences), (f"{blocks} blocks of {compared} tensors",))


@dataclass(frozen=True)
class _Pair:
    """One tensor on both sides."""

    stored: StoredWeights
    checkpoint: Checkpoint
    manifest: Manifest
    name: str
    shape: tuple[int, ...]
    calibrated: bool

    @property
    def block(self) -> int:
        summary = self.manifest.tensors.get(self.name)
        return (summary.block_size if summary else None) or _PLAIN_BLOCK

    @property
    def limit(self) -> float:
        summary = self.manifest.tensors.get(self.name)
        if summary is None or summary.block_size is None:
            return _PLAIN
        return _CALIBRATED if self.calibrated else _ROUNDED

    def pieces(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield first row, checkpoint's rows and package's rows, float32 [rows, columns]; a vector is one row."""
        count, *columns = self.shape
        if not columns:
            yield 0, self.checkpoint.read(self.name)[None], self.stored.read(self.name, slice(0, count))[None]
            return
        step = max(1, _CHUNK_VALUES // math.prod(columns))
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            yield start, self.checkpoint.read(self.name, rows), self.stored.read(self.name, rows)


def _compare(pair: _Pair) -> _Block:
    columns = _column_factors(pair) if pair.calibrated else None
    found = _Block()
    for start, wanted, stored in pair.pieces():
        if columns is not None:
            wanted = wanted * columns
            if pair.name.endswith(_SCALED_ROWS):
                wanted *= _row_factors(pair, wanted, stored)
        _judge(found, pair, start, wanted, stored)
    return found


def _column_factors(pair: _Pair) -> np.ndarray:
    dots = squares = np.zeros(pair.shape[-1])
    for _, wanted, stored in pair.pieces():
        dots = dots + (stored * wanted).sum(0)
        squares = squares + (wanted * wanted).sum(0)
    return _factor(dots, squares).astype(np.float32)


def _factor(dots: np.ndarray, squares: np.ndarray) -> np.ndarray:
    return np.divide(dots, squares, out=np.ones_like(dots), where=squares > 0)


def _row_factors(pair: _Pair, wanted: np.ndarray, stored: np.ndarray) -> np.ndarray:
    # The median of a row's blocks, which one wrong scale hardly moves.
    dots, _, theirs = _products(pair, wanted, stored)
    return np.median(_factor(dots, theirs), axis=1, keepdims=True)


def _products(pair: _Pair, wanted: np.ndarray, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return stored . wanted, stored . stored and wanted . wanted of each block, [rows, blocks]."""
    pad = ((0, 0), (0, -wanted.shape[1] % pair.block))
    one, other = (np.pad(x, pad).reshape(len(x), -1, pair.block) for x in (stored, wanted))
    dots, own, theirs = (np.einsum("rbk,rbk->rb", a, b) for a, b in ((one, other), (one, one), (other, other)))
    return dots, own, theirs


def _judge(found: _Block, pair: _Pair, start: int, wanted: np.ndarray, stored: np.ndarray) -> None:
    dots, own, theirs = _products(pair, wanted, stored)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = dots / own
    good = (factor >= 1 / pair.limit) & (factor <= pair.limit)
    good |= (own == 0) & (theirs <= _NEGLIGIBLE**2 * theirs.mean())
    found.count += good.size
    bad = np.argwhere(~good)
    found.wrong += len(bad)
    for row, block in bad[: _NAMED - len(found.named)]:
        found.named.append(_described(pair, start + int(row), int(block), float(factor[row, block])))


def _described(pair: _Pair, row: int, block: int, factor: float) -> str:
    first = block * pair.block
    place = f"row {row}, " if len(pair.shape) > 1 else ""
    if not math.isfinite(factor):
        return f"{place}columns {first} on are zero or not finite"
    # A scale is wrong by the inverse of the factor that fixes it. Values without any correlation come from elsewhere.
    reason = f"scale is {1 / factor:.3g} times too large" if factor > 0.05 else "other weights"
    return f"{place}columns {first} on: {reason}"
