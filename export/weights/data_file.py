"""The external data files of a package: every initializer at an offset known beforehand, written in any order."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .layout import Layout

DATA_NAME = "model.onnx.data"


def data_name(number: int) -> str:
    """Name a data file of a package: `model.onnx.data`, `model.onnx.data_1`, and so on."""
    return f"{DATA_NAME}_{number}" if number else DATA_NAME


@dataclass(frozen=True)
class DataFile:
    """Writes initializers into the files of a folder, row by row where asked, from any thread or process."""

    folder: Path
    layout: Layout

    def create(self) -> None:
        """Make the files in their full size.

        Raises:
            OSError: one cannot be made.

        """
        for number, size in enumerate(self.layout.file_sizes):
            with (self.folder / data_name(number)).open("wb") as file:
                file.truncate(size)

    def write(self, name: str, array: np.ndarray, first_row: int = 0) -> int:
        """Write an initializer, or its rows from `first_row` on, cast to its dtype; return the bytes written.

        Raises:
            OSError: they cannot be written.

        """
        entry = self.layout.stored[name]
        data = np.ascontiguousarray(array, dtype=entry.dtype)
        # Opened each time: nothing is shared between threads, and nothing stays open in a process that is ended.
        with (self.folder / data_name(entry.file)).open("r+b", buffering=0) as file:
            file.seek(entry.offset + first_row * entry.row_bytes)
            left = data.reshape(-1).view(np.uint8).data
            while left:
                left = left[file.write(left) :]
        return data.nbytes
