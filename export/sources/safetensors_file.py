"""One safetensors file: its header checked when it is opened, its tensors read a few rows at a time.

The format (huggingface/safetensors, README, "Format"): the header's length as a little-endian uint64, the header as
JSON `{name: {dtype, shape, data_offsets}}`, then the tensors' bytes without holes, offsets counted from where the
header ends.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...configs.errors import SourceError
from .tensor_bytes import CHUNK_VALUES, read_bytes, require_finite

MAX_HEADER = 100_000_000
"""The format's own limit on the header, in bytes."""
_MOST_TENSORS, _LONGEST_NAME = 100_000, 1024
"""Of one file; those of the largest models have some thousand tensors, with names of a hundred characters."""

_FLOATS: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<i2"}
"""The last as the bits that numpy has no type for."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file."""

    dtype: str
    """As the header names it: F32, BF16, I8 …"""
    shape: tuple[int, ...]
    offset: int
    """From the start of the file, in bytes."""
    size: int
    """In bytes."""

    @property
    def is_float(self) -> bool:
        """Whether it is of a plain floating-point type, so that it can be read."""
        return self.dtype in _FLOATS


class SafetensorsFile:
    """A safetensors file whose header is whole and whose tensors all lie inside the file."""

    def __init__(self, path: Path) -> None:
        """Read and check the header.

        Raises:
            SourceError: the file is missing, truncated, or not a safetensors file.

        """
        self.path = path
        self.tensors: Mapping[str, StoredTensor] = _read_header(path)

    def read_into(self, name: str, start: int, out: np.ndarray) -> None:
        """Fill `out` (float32, C-contiguous, [rows, …]) with rows `start`, `start + 1`, … of a tensor.

        Raises:
            SourceError: the bytes cannot be read, or hold NaN or infinite values.

        """
        tensor = self.tensors[name]
        stored = np.dtype(_FLOATS[tensor.dtype])
        flat = out.reshape(-1)
        offset = tensor.offset + start * math.prod(tensor.shape[1:]) * stored.itemsize
        for i in range(0, flat.size, CHUNK_VALUES):
            chunk = flat[i : i + CHUNK_VALUES]
            _read_floats(self.path, offset + i * stored.itemsize, tensor.dtype, stored, chunk)
            require_finite(chunk, name, self.path)


def _read_floats(path: Path, offset: int, dtype: str, stored: np.dtype, out: np.ndarray) -> None:
    if dtype == "F32":
        read_bytes(path, offset, out)
        return
    raw = np.empty(out.size, stored)
    read_bytes(path, offset, raw)
    values = torch.from_numpy(raw)
    # PyTorch converts bfloat16 in a third, float16 in an eighth of the time that numpy takes. A float64 too large for
    # float32 becomes infinite, and is refused as such.
    torch.from_numpy(out).copy_(values.view(torch.bfloat16) if dtype == "BF16" else values)


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    if size < 8:
        raise SourceError(f"{path} is not a safetensors file: it has {size} bytes, the header alone takes 8 and more")
    length = np.empty(1, "<u8")
    read_bytes(path, 0, length)
    header_size = int(length[0])
    if header_size > MAX_HEADER:
        raise SourceError(f"{path} is not a safetensors file: it would have a header of {header_size} bytes")
    if 8 + header_size > size:
        raise SourceError(
            f"{path} is truncated: its header ends at byte {8 + header_size}, the file has {size}; get the file again"
        )
    text = np.empty(header_size, np.uint8)
    read_bytes(path, 8, text)
    try:
        table = json.loads(text.tobytes())
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not a safetensors file: its header is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise SourceError(f"{path} is not a safetensors file: its header is not a JSON object")
    table.pop("__metadata__", None)
    if len(table) > _MOST_TENSORS:
        raise SourceError(f"{path} holds {len(table)} tensors, more than the limit of {_MOST_TENSORS}")
    if longest := next((name for name in table if len(name) > _LONGEST_NAME), None):
        raise SourceError(
            f"{path}: the name {longest[:40]}... has {len(longest)} characters, the limit is {_LONGEST_NAME}"
        )
    tensors = {name: _parse_entry(path, name, entry, 8 + header_size) for name, entry in table.items()}
    _check_layout(path, tensors, 8 + header_size, size)
    return tensors


def _parse_entry(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, begin, end)
        if not isinstance(dtype, str) or not all(isinstance(n, int) and n >= 0 for n in numbers) or end < begin:
            raise ValueError("values of the wrong kind")
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{path} is damaged: the header's entry for {name!r} makes no sense ({error})") from error
    if dtype in _FLOATS and (expected := math.prod(shape) * np.dtype(_FLOATS[dtype]).itemsize) != end - begin:
        raise SourceError(
            f"{path} is damaged: {name} of shape {list(shape)} in {dtype} takes {expected} bytes, not {end - begin}"
        )
    return StoredTensor(dtype, shape, data_start + begin, end - begin)


def _check_layout(path: Path, tensors: Mapping[str, StoredTensor], data_start: int, size: int) -> None:
    position = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset != position:
            raise SourceError(f"{path} is damaged: {name} starts at byte {tensor.offset}, expected {position}")
        position += tensor.size
    if position != size:
        what = "truncated" if size < position else "damaged"
        raise SourceError(f"{path} is {what}: expected {position} bytes, got {size}; get the file again")
