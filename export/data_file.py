"""The external data file of a package: every initializer at an offset known beforehand, written in any order."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir

from ..configs import OutputError
from .graph import initializer_bytes

DATA_NAME = "model.onnx.data"
_ALIGNMENT, _ALIGN_FROM = 4096, 1 << 20
"""Tensors of a megabyte and more start at a page, so that runtimes can map them into memory."""


class DataFile:
    """Writes initializers into one file, row by row where asked, from any thread.

    `bind` gives the graph's initializers their place in the file. Leaving the context checks that every byte was
    written exactly once as far as counting tells.
    """

    def __init__(self, folder: Path, values: Sequence[ir.Value], progress: Callable[[int], None]) -> None:
        self._folder, self._values, self._progress = folder, {value.name: value for value in values}, progress
        self._offsets: dict[str | None, int] = {}
        self._missing: dict[str | None, int] = {}
        position = 0
        for value in values:
            size = initializer_bytes(value)
            if size >= _ALIGN_FROM:
                position = -(-position // _ALIGNMENT) * _ALIGNMENT
            self._offsets[value.name] = position
            self._missing[value.name] = size
            position += size
        self.size = position
        self._lock = threading.Lock()

    def __enter__(self) -> "DataFile":
        self._file = (self._folder / DATA_NAME).open("wb")
        try:
            self._file.truncate(self.size)
        except OSError:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            short = [name for name, missing in self._missing.items() if missing]
            if short:
                raise OutputError(f"{len(short)} tensors were not written whole, the first is {short[0]}")

    def write(self, name: str, array: np.ndarray, first_row: int = 0) -> None:
        """Write an initializer, or its rows from `first_row` on; values are cast to the initializer's dtype."""
        value = self._values[name]
        assert value.dtype is not None and value.shape is not None
        data = np.ascontiguousarray(array, dtype=value.dtype.numpy())
        row_bytes = initializer_bytes(value) // int(value.shape[0])
        with self._lock:
            self._file.seek(self._offsets[name] + first_row * row_bytes)
            self._file.write(data.data)
            self._missing[name] -= data.nbytes
            self._progress(data.nbytes)

    def bind(self) -> None:
        """Let each initializer of the graph refer to its place in the file."""
        for name, value in self._values.items():
            assert name and value.dtype is not None and value.shape is not None
            value.const_value = ir.ExternalTensor(
                DATA_NAME,
                self._offsets[name],
                initializer_bytes(value),
                value.dtype,
                shape=ir.Shape(value.shape),
                name=name,
                base_dir=self._folder,
            )
