"""How many bytes of memory one token takes: what the reading of weights and cache costs at least."""

from typing import Any

from ..configs import Manifest, WeightScheme
from ..configs.manifest import TensorSummary
from ..export.weights.layout import EMBEDDING
from ..quantize.packed import packed_shapes
from ..runtime.package import Package

_DATA_SUFFIX = ".data"


def weights_read(package: Package) -> int | None:
    """Return the bytes of weights that are read for a token; None for a package without a manifest.

    All that the package stores, as it stores them, but for an embedding of its own: of that, a row is read. A kernel
    that keeps its weights in another form reads more or less.
    """
    manifest = package.manifest
    if manifest is None:
        return None
    total = sum(entry.size for name, entry in manifest.files.items() if _DATA_SUFFIX in name)
    embedding = manifest.tensors.get(EMBEDDING)
    tied = not any(name.startswith("lm_head") for name in manifest.tensors)
    return total - (0 if tied or embedding is None else _stored(embedding, manifest))


def _stored(tensor: TensorSummary, manifest: Manifest) -> int:
    rows, columns = tensor.shape
    if tensor.block_size is None:
        return rows * columns * tensor.bits // 8
    bits: Any = tensor.bits
    scheme = WeightScheme(bits, tensor.block_size, bool(tensor.symmetric))
    return packed_shapes(rows, columns, scheme).num_bytes(2 if manifest.io_dtype == "float16" else 4)
