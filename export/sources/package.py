"""An unquantized package as a checkpoint: its data file holds the weights row by row, as a checkpoint does."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo

from ...configs import Manifest, PackageError, SourceError, parse_model_config, read_manifest
from ...configs.files import read_json
from ...configs.manifest import check_files
from .checkpoint import Checkpoint
from .tensor_bytes import CHUNK_VALUES, read_bytes, require_finite
from .tokenizer_files import read_tokenizer_files

_DTYPES: Mapping[int, Any] = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}

_REMEDY = "export the package again"


@dataclass(frozen=True)
class _Place:
    dtype: Any
    shape: tuple[int, ...]
    offset: int


class PackageCheckpoint(Checkpoint):
    """The weights of a `cpu-fp32` or `cuda-fp16` package, to quantize it without the original checkpoint."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Open a package; see `open_package_checkpoint`."""
        self.source, self.revision, self.model = str(folder), manifest.revision, manifest.model
        self.config = parse_model_config(
            read_json(folder / "config.json", SourceError, remedy=_REMEDY), str(folder / "config.json")
        )
        self.generation_config = read_json(folder / "generation_config.json", SourceError, remedy=_REMEDY)
        self._assets = read_tokenizer_files(folder)
        self._data, self._places = folder / "model.onnx.data", _places(folder)
        for name, shape in self.config.tensor_shapes().items():
            if name not in self._places or self._places[name].shape != shape:
                raise SourceError(f"{folder}: tensor {name} is missing or not of shape {shape}; export it again")

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Return a tensor, or some of its rows, as a new float32 array; see `Checkpoint.read`."""
        place = self._places[name]
        start, stop, _ = (rows or slice(None)).indices(place.shape[0])
        row = int(np.prod(place.shape[1:], dtype=np.int64))
        out = np.empty((max(stop - start, 0), *place.shape[1:]), np.float32)
        step = max(1, CHUNK_VALUES // row)
        for first in range(start, stop, step):
            piece = np.empty((min(step, stop - first), *place.shape[1:]), place.dtype)
            read_bytes(self._data, place.offset + first * row * piece.itemsize, piece)
            require_finite(piece, name, self._data)
            out[first - start : first - start + len(piece)] = piece
        return out

    def assets(self) -> Mapping[str, bytes]:
        """Return the tokenizer's files; see `Checkpoint.assets`."""
        return self._assets


def open_package_checkpoint(folder: Path) -> Checkpoint:
    """Open an unquantized package as a checkpoint.

    Raises:
        SourceError: the package is damaged, or its weights are quantized.

    """
    try:
        manifest = read_manifest(folder)
        check_files(folder, manifest)
    except PackageError as error:
        raise SourceError(str(error)) from error
    if manifest.target.quantization is not None:
        raise SourceError(
            f"{folder} is a quantized package ({manifest.target.name}), which cannot be exported from; "
            f"name its source ({manifest.source}) or a cpu-fp32 or cuda-fp16 package"
        )
    return PackageCheckpoint(folder, manifest)


def _places(folder: Path) -> dict[str, _Place]:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    places: dict[str, _Place] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.data_type in _DTYPES:
            info = ExternalDataInfo(tensor)
            places[tensor.name] = _Place(_DTYPES[tensor.data_type], tuple(tensor.dims), int(info.offset or 0))
    return places
