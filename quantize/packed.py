"""A quantized matrix in the layout of `com.microsoft::MatMulNBits`, which `GatherBlockQuantized` reads as well.

Both operators agree (ONNX Runtime 1.32, tests/quantize/test_packed.py) on: codes of one row in blocks along K, the
lower half of a byte first, a last block that is shorter than the others filled up to full length, zero points packed
like codes, and 2^(bits - 1) for zero where there is no zero point input. `GatherBlockQuantized` takes the same bytes
as a matrix (`QuantizedWeight.rows`) and returns rows of the padded length. ONNX Runtime 1.24.4 does the same but for
one case: its `GatherBlockQuantized` misreads 4-bit zero points where a row has an odd number of blocks.
"""

from dataclasses import dataclass

import numpy as np

from ..configs import WeightScheme


@dataclass(frozen=True)
class PackedShapes:
    """Shapes of the initializers of one quantized matrix."""

    packed: tuple[int, int, int]
    """uint8 [N, blocks, block_size * bits / 8]"""
    scales: tuple[int, int]
    """[N, blocks], in the graph's float dtype."""
    zero_points: tuple[int, int] | None
    """uint8 [N, ceil(blocks * bits / 8)]; None for a symmetric scheme, which has no such input."""

    def num_bytes(self, scale_bytes: int) -> int:
        """Return the bytes of all of them, with scales of `scale_bytes` bytes each."""
        rows, blocks, blob = self.packed
        zeros = 0 if self.zero_points is None else self.zero_points[0] * self.zero_points[1]
        return rows * blocks * blob + rows * blocks * scale_bytes + zeros


def packed_shapes(rows: int, columns: int, scheme: WeightScheme) -> PackedShapes:
    """Return the shapes of a matrix [rows, columns] = [N, K] once it is quantized."""
    blocks = -(-columns // scheme.block_size)
    zeros = None if scheme.symmetric else (rows, -(-blocks * scheme.bits // 8))
    return PackedShapes((rows, blocks, scheme.block_size * scheme.bits // 8), (rows, blocks), zeros)


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A matrix [N, K] as codes, scales and zero points: weight = (code - zero point) * scale."""

    packed: np.ndarray
    """uint8 [N, blocks, block_size * bits / 8]"""
    scales: np.ndarray
    """float32 [N, blocks], already rounded to the dtype in which the graph stores them."""
    zero_points: np.ndarray | None
    """uint8 [N, ceil(blocks * bits / 8)]; None for a symmetric scheme."""
    scheme: WeightScheme
    shape: tuple[int, int]
    """(N, K)"""
    squared_error: float | None = None
    """Sum of squared differences to the weights it was made from, where that was counted."""

    @property
    def rows(self) -> np.ndarray:
        """The codes as `GatherBlockQuantized` wants them: uint8 [N, blocks * block_size * bits / 8], the same bytes."""
        return self.packed.reshape(self.shape[0], -1)

    def codes(self) -> np.ndarray:
        """Return the codes as uint8 [N, blocks, block_size], the padding of the last block included."""
        return _unpack(self.packed, self.scheme.bits)

    def zeros(self) -> np.ndarray:
        """Return the zero point of each block as uint8 [N, blocks]."""
        if self.zero_points is None:
            return np.full(self.scales.shape, 1 << (self.scheme.bits - 1), np.uint8)
        return _unpack(self.zero_points, self.scheme.bits)[:, : self.scales.shape[1]]

    def dequantize(self) -> np.ndarray:
        """Return what the runtime computes with, as float32 [N, K].

        The difference of two codes is exact and one float32 product is rounded once, as in ONNX Runtime's kernels.
        """
        steps = self.codes().astype(np.float32)
        steps -= self.zeros()[:, :, None]
        steps *= self.scales[:, :, None]
        return steps.reshape(self.shape[0], -1)[:, : self.shape[1]]


def pack(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, scheme: WeightScheme, columns: int
) -> QuantizedWeight:
    """Pack codes into the operators' layout.

    Args:
        codes: uint8 [N, blocks, block_size]; columns past K hold the zero point.
        scales: float32 [N, blocks].
        zeros: uint8 [N, blocks], or None for a symmetric scheme.
        scheme: Bits, block size and symmetry of all these.
        columns: K.

    Raises:
        ValueError: shapes do not fit each other or the scheme.

    """
    rows, blocks, block = codes.shape
    expected = packed_shapes(rows, columns, scheme)
    if block != scheme.block_size or (rows, blocks) != expected.scales or scales.shape != expected.scales:
        raise ValueError(f"codes {codes.shape} and scales {scales.shape} do not fit {columns} columns of {scheme}")
    if (zeros is None) != scheme.symmetric or (zeros is not None and zeros.shape != scales.shape):
        raise ValueError(f"zero points {None if zeros is None else zeros.shape} do not fit {scheme}")
    packed_zeros = None if zeros is None else pack_codes(zeros, scheme.bits)
    return QuantizedWeight(pack_codes(codes, scheme.bits), scales, packed_zeros, scheme, (rows, columns))


def pack_codes(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack uint8 values of `bits` bits along the last axis, the lower half of a byte first; a last half may stay 0."""
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    # Two neighbours read as one number are low + high * 256; shifted onto each other they are low + high * 16.
    pairs = np.ascontiguousarray(values).view("<u2")
    return (pairs | (pairs >> 4)).astype(np.uint8)


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return packed
    values = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    np.bitwise_and(packed, 15, out=values[..., 0::2])
    np.right_shift(packed, 4, out=values[..., 1::2])
    return values
