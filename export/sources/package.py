"""An unquantized package as a checkpoint: its data file holds the weights row by row, as a checkpoint does."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...configs import Manifest, PackageError, SourceError, parse_model_config, read_manifest
from ...configs.files import read_json
from ...configs.manifest import check_files
from .checkpoint import Checkpoint
from .initializers import Initializers
from .tensor_bytes import CHUNK_VALUES, require_finite
from .tokenizer_files import read_tokenizer_files

_REMEDY = "export the package again"


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
        self._file, self._tensors = folder / "model.onnx", _open(folder)
        for name, shape in self.config.tensor_shapes().items():
            if name not in self._tensors or self._tensors.shape(name) != shape or not self._tensors.is_float(name):
                raise SourceError(
                    f"{folder}: tensor {name} is missing, or is not float32 or float16 {shape}; export it again"
                )

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Return a tensor, or some of its rows, as a new float32 array; see `Checkpoint.read`."""
        shape = self._tensors.shape(name)
        start, stop, _ = (rows or slice(None)).indices(shape[0])
        out = np.empty((max(stop - start, 0), *shape[1:]), np.float32)
        step = max(1, CHUNK_VALUES // int(np.prod(shape[1:], dtype=np.int64)))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            piece = self._read(name, slice(first, last))
            require_finite(piece, name, self._file)
            out[first - start : last - start] = piece
        return out

    def _read(self, name: str, rows: slice) -> np.ndarray:
        try:
            return self._tensors.read(name, rows)
        except PackageError as error:
            raise SourceError(str(error)) from error

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


def _open(folder: Path) -> Initializers:
    try:
        return Initializers(folder)
    except PackageError as error:
        raise SourceError(str(error)) from error
