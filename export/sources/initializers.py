"""The tensors of a package's graph as they lie on disk, some rows at a time; the graph is never loaded with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo

from ...configs.errors import PackageError, SourceError
from .tensor_bytes import read_bytes


@dataclass(frozen=True)
class _Place:
    """Where the bytes of a tensor lie: in a file from an offset on, or in the graph itself."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    file: Path | None
    offset: int
    proto: TensorProto


class Initializers:
    """What a package's `model.onnx` holds or refers to, by the graph's names; reading is safe from several threads."""

    def __init__(self, folder: Path) -> None:
        """Find every tensor.

        Raises:
            PackageError: the graph cannot be read.

        """
        path = folder / "model.onnx"
        try:
            graph = onnx.load(path, load_external_data=False).graph
            self._places = {tensor.name: _place(folder, tensor) for tensor in graph.initializer}
        except Exception as error:  # protobuf's and onnx's own
            raise PackageError(f"{path} cannot be read: {error}", remedy="export the package again") from error
        self._folder = folder

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor that is there."""
        return self._places[name].shape

    def is_float(self, name: str) -> bool:
        """Return whether a tensor that is there holds float16 or float32 values."""
        return self._places[name].dtype in (np.float16, np.float32)

    def read(self, name: str, rows: slice) -> np.ndarray:
        """Return rows of a tensor as they are stored, as a new array.

        Raises:
            PackageError: there is no such tensor, or its file cannot be read or ends too early.

        """
        place = self._places.get(name)
        if place is None:
            raise PackageError(f"{self._folder} has no tensor {name}", remedy="export the package again")
        if place.file is None:
            return numpy_helper.to_array(place.proto)[rows].copy()
        start, stop, _ = rows.indices(place.shape[0])
        found = np.empty((max(stop - start, 0), *place.shape[1:]), place.dtype)
        row = place.dtype.itemsize * int(np.prod(place.shape[1:], dtype=np.int64))
        try:
            read_bytes(place.file, place.offset + start * row, found)
        except SourceError as error:
            raise PackageError(f"tensor {name}: {error}", remedy="export the package again") from error
        return found


def _place(folder: Path, tensor: TensorProto) -> _Place:
    dtype, shape = helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
    if tensor.data_location != TensorProto.EXTERNAL:
        return _Place(dtype, shape, None, 0, tensor)
    info = ExternalDataInfo(tensor)
    return _Place(dtype, shape, folder / info.location, int(info.offset or 0), tensor)
