"""One GGUF file: metadata and tensor table read when it is opened, tensors read and dequantized a few rows at a time.

The layout is the one that ggml's docs/gguf.md describes. The `gguf` package knows the weight types (their block sizes,
how to dequantize them); its own reader maps the whole file and meets a damaged one with a numpy error, hence this one.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np

from ....configs.errors import SourceError
from ..tensor_bytes import CHUNK_VALUES, read_bytes, require_finite

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY
_SCALARS: Mapping[int, str] = {
    gguf.GGUFValueType.UINT8: "<u1",
    gguf.GGUFValueType.INT8: "<i1",
    gguf.GGUFValueType.UINT16: "<u2",
    gguf.GGUFValueType.INT16: "<i2",
    gguf.GGUFValueType.UINT32: "<u4",
    gguf.GGUFValueType.INT32: "<i4",
    gguf.GGUFValueType.FLOAT32: "<f4",
    gguf.GGUFValueType.UINT64: "<u8",
    gguf.GGUFValueType.INT64: "<i8",
    gguf.GGUFValueType.FLOAT64: "<f8",
    gguf.GGUFValueType.BOOL: "?",
}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies in its file, and how its weights are stored."""

    type: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    """Rows first, as numpy and Hugging Face have it (GGUF itself lists the columns first)."""
    offset: int
    """From the start of the file, in bytes."""

    @property
    def row_size(self) -> int:
        """Bytes of one row (of the whole tensor, where it has one dimension)."""
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // block * size

    @property
    def size(self) -> int:
        """Bytes in all."""
        return math.prod(self.shape[:-1]) * self.row_size


class GgufFile:
    """A GGUF file whose header is whole and whose tensors all lie inside the file."""

    def __init__(self, path: Path) -> None:
        """Read and check metadata and tensor table.

        Raises:
            SourceError: the file is missing, truncated, damaged, or no GGUF file that can be read.

        """
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                self.metadata, self.tensors = _Header(path, file, size).parse()
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
        end = max((tensor.offset + tensor.size for tensor in self.tensors.values()), default=0)
        if end > size:
            raise SourceError(f"{path} is truncated: expected {end} bytes, got {size}; get the file again")

    def read_into(self, name: str, start: int, out: np.ndarray) -> None:
        """Fill `out` (float32, C-contiguous) with rows `start`, `start + 1`, … of a tensor, dequantized.

        Raises:
            SourceError: the bytes cannot be read, or hold NaN or infinite values.

        """
        tensor = self.tensors[name]
        if len(tensor.shape) == 1:  # a norm: small, and its blocks run along what a matrix would call a row
            whole = self._dequantize(tensor, tensor.offset, 1)
            out[:] = whole[0, start : start + out.size]
        else:
            step = max(CHUNK_VALUES // tensor.shape[-1], 1)
            for i in range(0, len(out), step):
                count = min(step, len(out) - i)
                out[i : i + count] = self._dequantize(tensor, tensor.offset + (start + i) * tensor.row_size, count)
        require_finite(out, name, self.path)

    def _dequantize(self, tensor: GgufTensor, offset: int, rows: int) -> np.ndarray:
        raw = np.empty((rows, tensor.row_size), np.uint8)
        read_bytes(self.path, offset, raw)
        with np.errstate(all="ignore"):  # whatever a damaged block overflows to is refused as not finite
            return gguf.dequantize(raw, tensor.type)


def can_dequantize(kind: gguf.GGMLQuantizationType) -> bool:
    """Whether weights of this type can be read."""
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


class _Header:
    """A reader of the part before the weights, which knows where the file ends."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path, self._file, self._size = path, file, size
        self._position = 0

    def parse(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        if (magic := self._file.read(len(MAGIC))) != MAGIC:
            raise SourceError(f"{self._path} is not a GGUF file: it starts with {magic!r}, expected {MAGIC!r}")
        self._position = len(MAGIC)
        version = self._number("<I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = f"big-endian (version {swapped})" if swapped in VERSIONS else f"of version {version}"
            raise SourceError(
                f"{self._path} is a GGUF file {what}; expected little-endian, version 2 or 3: convert the model again"
            )
        tensor_count, key_count = self._number("<Q"), self._number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string()
            metadata[key] = self._value(self._number("<I"))
        table = [self._tensor_entry() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise self._damaged(f"general.alignment is {alignment!r}")
        start = -(-self._position // alignment) * alignment
        return metadata, {name: GgufTensor(kind, shape, start + offset) for name, kind, shape, offset in table}

    def _tensor_entry(self) -> tuple[str, gguf.GGMLQuantizationType, tuple[int, ...], int]:
        name = self._string()
        dimensions = self._number("<I")
        if not 1 <= dimensions <= 4:
            raise self._damaged(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(reversed([self._number("<Q") for _ in range(dimensions)]))
        number, offset = self._number("<I"), self._number("<Q")
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError:
            raise SourceError(
                f"{self._path}: tensor {name!r} is of weight type {number}, which the gguf package "
                "does not know; convert the model to another type (or: pip install -U gguf)"
            ) from None
        if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            raise self._damaged(f"tensor {name!r} of type {kind.name} has rows of {shape[-1]} values")
        return name, kind, shape, offset

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._numbers(kind, 1)[0]
        if kind != _ARRAY:
            raise self._damaged(f"unknown value type {kind}")
        inner, count = self._number("<I"), self._number("<Q")
        if inner == _STRING:
            return [self._string() for _ in range(count)]
        if inner not in _SCALARS:  # nor does llama.cpp read arrays of arrays
            raise self._damaged(f"unknown array type {inner}")
        return self._numbers(inner, count)

    def _numbers(self, kind: int, count: int) -> list[Any]:
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()

    def _number(self, layout: str) -> int:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _string(self) -> str:
        data = self._take(self._number("<Q"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged("a string of its header is not UTF-8") from None

    def _take(self, count: int) -> bytes:
        end = self._position + count
        if end > self._size:
            raise SourceError(
                f"{self._path} is truncated or damaged: its header reaches to byte {end}, the file has {self._size}"
            )
        self._position = end
        return self._file.read(count)

    def _damaged(self, what: str) -> SourceError:
        return SourceError(f"{self._path} is damaged: {what}; get the file again")
