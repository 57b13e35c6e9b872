"""The external data file of a package: every initializer at an offset known beforehand, written in any order."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir

from ..configs import OutputError
from .graph import initializer_bytes
from .passes.edit import static_shape, stored_dtype

DATA_NAME = "model.onnx.data"
_ALIGNMENT, _ALIGN_FROM = 4096, 1 << 20
"""Tensors of a megabyte and more start at a page, so that runtimes can map them into memory."""


class DataFile:
    """Writes initializers into one file, row by row where asked, from any thread.

    `bind` gives the graph's initializers their place in the file. Leaving the context checks that every byte was
    written exactly once as far as counting tells.
    """

    def __init__(self, folder: Path, values: Sequence[ir.Value], progress: Callable[[int], None]) -> None:
        self._folder, self._values, self._progress = folder, {value.name or "": value for value in values}, progress
        self._offsets: dict[str, int] = {}
        self._missing: dict[str, int] = {}
        position = 0
        for name, value in self._values.items():
            size = initializer_bytes(value)
            if size >= _ALIGN_FROM:
                position = -(-position // _ALIGNMENT) * _ALIGNMENT
            self._offsets[name] = position
            self._missing[name] = size
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
        data = np.ascontiguousarray(array, dtype=stored_dtype(value).numpy())
        row_bytes = initializer_bytes(value) // static_shape(value)[0]
        with self._lock:
            self._file.seek(self._offsets[name] + first_row * row_bytes)
            self._file.write(data.data)
            self._missing[name] -= data.nbytes
            self._progress(data.nbytes)

    def bind(self) -> None:
        """Let each initializer of the graph refer to its place in the file."""
        for name, value in self._values.items():
            value.const_value = ir.ExternalTensor(
                DATA_NAME,
                self._offsets[name],
                initializer_bytes(value),
                stored_dtype(value),
                shape=ir.Shape(static_shape(value)),
                name=name,
                base_dir=self._folder,
            )
