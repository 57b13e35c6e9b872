"""The weights of a package as they lie on disk, read back as float32, some rows at a time."""

from pathlib import Path

import numpy as np

from ...configs import Manifest, WeightScheme
from ...export.sources.initializers import Initializers
from ...export.weights.layout import PROJECTIONS, part_name
from ...quantize.packed import QuantizedWeight, packed_shapes


class StoredWeights:
    """What the graph of a package of this project computes with, by the checkpoint's tensor names."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Find every tensor in the package's files.

        Raises:
            PackageError: the graph cannot be read.

        """
        self._manifest = manifest
        self._tensors = Initializers(folder)

    def read(self, name: str, rows: slice) -> np.ndarray:
        """Return rows of a tensor as float32, dequantized where it is quantized.

        Raises:
            PackageError: the package has no such tensor, or its data file is too short.

        """
        base, summary = name.removesuffix(".weight"), self._manifest.tensors.get(name)
        # Looked at first: an embedding may lie there plain beside the quantized matrix of the head that it is tied to.
        if summary is None or summary.block_size is None or summary.symmetric is None:
            return self._raw(name, rows).astype(np.float32, copy=False)
        scheme = WeightScheme(8 if summary.bits == 8 else 4, summary.block_size, summary.symmetric)
        packed, scales = self._raw(f"{base}.qweight", rows), self._raw(f"{base}.scales", rows).astype(np.float32)
        zeros = None if scheme.symmetric else self._raw(f"{base}.zero_points", rows)
        columns = summary.shape[1]
        blocks = packed_shapes(len(scales), columns, scheme)
        return QuantizedWeight(
            packed.reshape(blocks.packed),
            scales.reshape(blocks.scales),
            zeros.reshape(blocks.zero_points) if zeros is not None and blocks.zero_points else None,
            scheme,
            (len(scales), columns),
        ).dequantize()

    def _raw(self, name: str, rows: slice) -> np.ndarray:
        """Return rows of an initializer as it is stored; one that the graph has in parts is put together."""
        parts = [part_name(name, part) for part in PROJECTIONS]
        if name in self._tensors or parts[0] not in self._tensors:
            return self._tensors.read(name, rows)
        found, first = [], 0
        for part in parts:
            count = self._tensors.shape(part)[0] if part in self._tensors else 0
            start, stop, _ = rows.indices(first + count)
            if max(start, first) < stop:
                found.append(self._tensors.read(part, slice(max(start, first) - first, stop - first)))
            first += count
        return np.concatenate(found)
