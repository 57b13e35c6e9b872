"""How many bytes of memory one token takes: what the reading of weights and cache costs at least."""

import math
from typing import Any

from ..configs import Manifest, WeightScheme
from ..configs.manifest import TensorSummary
from ..export.weights.layout import EMBEDDING
from ..quantize.packed import packed_shapes
from ..runtime import Model
from ..runtime.engines.packed_engine import PackedEngine

_DATA_SUFFIX = ".data"
_HEAD = "lm_head"


def weights_read(model: Model) -> int | None:
    """Return the bytes of weights that are read for a token; None for a package without a manifest.

    All that the package stores, as it stores them, but for an embedding of its own: of that, a row is read. Where a
    copy in int8 runs, its matrices take a byte for each weight. A kernel that keeps its weights in another form reads
    more or less.
    """
    manifest = model.package.manifest
    if manifest is None:
        return None
    total = sum(entry.size for name, entry in manifest.files.items() if _DATA_SUFFIX in name)
    embedding = manifest.tensors.get(EMBEDDING)
    tied = not any(name.startswith(_HEAD) for name in manifest.tensors)
    if not tied and embedding is not None:
        total -= _stored(embedding, manifest)
    if isinstance(model.engine, PackedEngine) and model.engine.graph.int8:
        for name, tensor in manifest.tensors.items():
            if tensor.block_size is not None and name != EMBEDDING and not name.startswith(_HEAD):
                total += _in_int8(tensor) - _stored(tensor, manifest)
    return total


def _stored(tensor: TensorSummary, manifest: Manifest) -> int:
    rows, columns = tensor.shape
    if tensor.block_size is None:
        return rows * columns * tensor.bits // 8
    bits: Any = tensor.bits
    scheme = WeightScheme(bits, tensor.block_size, bool(tensor.symmetric))
    return packed_shapes(rows, columns, scheme).num_bytes(2 if manifest.io_dtype == "float16" else 4)


def _in_int8(tensor: TensorSummary) -> int:
    """Return the bytes of a matrix of `export.graph.passes.int8_products`: its codes, and a scale for each row."""
    return math.prod(tensor.shape) + 4 * tensor.shape[0]
