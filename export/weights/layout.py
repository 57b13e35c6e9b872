"""What lies where in a package's data file. The model's shape and the target decide it, before there is a graph."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ...configs import ModelConfig, Target, UsageError, WeightScheme
from ...quantize.packed import packed_shapes
from .rope import table_length

EMBEDDING = "model.embed_tokens.weight"
COS_TABLE, SIN_TABLE = "rope.cos", "rope.sin"
"""Names of the rotary tables among the initializers; all others are the checkpoint's, or made of them."""

EMBEDDING = "model.embed_tokens.weight"
"""The checkpoint's name of the embedding, which a tied head shares."""

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""What the rows of `qkv_proj` are, in their order, where a graph has a linear layer for each."""

_ALIGNMENT, _ALIGN_FROM = 4096, 1 << 20
"""Tensors of a megabyte and more start at a page, so that runtimes can map them into memory."""


def part_name(fused: str, part: str) -> str:
    """Name what one of `PROJECTIONS` takes of a name with `qkv_proj` in it."""
    return fused.replace("qkv_proj", part)


@dataclass(frozen=True)
class QuantizedTensor:
    """The initializers that one weight matrix of the checkpoint becomes."""

    tensor: str
    scheme: WeightScheme
    packed: str
    scales: str
    zero_points: str | None
    """What a product reads; None for a symmetric scheme."""
    lookup_zero_points: str | None
    """What an embedding's lookup reads."""

    def zero_points_shape(self, rows: int, columns: int) -> tuple[int, int] | None:
        """Return the shape of the zero points that are stored; None where there are none."""
        if self.lookup_zero_points is None:
            return None
        return packed_shapes(rows, columns, replace(self.scheme, symmetric=False)).zero_points


def quantized_tensor(tensor: str, scheme: WeightScheme, provider: str) -> QuantizedTensor:
    """Name the initializers of a quantized matrix, such as `model.layers.0.mlp.down_proj.weight`."""
    base = tensor.removesuffix(".weight")
    named = f"{base}.zero_points"
    zero_points = None if scheme.symmetric else named
    lookup = named if _looked_up_from_0(tensor, scheme, provider) else zero_points
    return QuantizedTensor(tensor, scheme, f"{base}.qweight", f"{base}.scales", zero_points, lookup)


def _looked_up_from_0(tensor: str, scheme: WeightScheme, provider: str) -> bool:
    # CUDA's GatherBlockQuantized from ONNX Runtime 1.24.4 to 1.28.0, so all of CUDA 12: without zero points it takes 0
    # for 128, the middle of 8 bits. A byte of zero point for each block costs less than a float16 embedding.
    return provider == "cuda" and tensor == EMBEDDING and scheme.bits == 8


@dataclass(frozen=True)
class Stored:
    """One initializer in the data file."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    """In bytes, from the start of its file."""
    file: int = 0
    """Number of its data file."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, which is all but the first dimension."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """The data files of a package: one, or as many as the target's `file_bytes` asks for."""

    stored: Mapping[str, Stored]
    """By the initializer's name, in the order of files and offsets."""
    quantized: Mapping[str, QuantizedTensor]
    """What a quantized tensor of the checkpoint becomes; the other tensors are initializers of their own name. An
    embedding that the head is tied to can be both."""

    @cached_property
    def file_sizes(self) -> tuple[int, ...]:
        """Bytes of each file."""
        sizes: dict[int, int] = {}
        for entry in self.stored.values():
            sizes[entry.file] = max(sizes.get(entry.file, 0), entry.offset + entry.num_bytes)
        return tuple(sizes[number] for number in range(len(sizes)))

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.file_sizes)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights, scales and zero points included; the rotary tables are not weights."""
        return sum(entry.num_bytes for name, entry in self.stored.items() if name not in (COS_TABLE, SIN_TABLE))


def plan_layout(config: ModelConfig, target: Target) -> Layout:
    """Return the place of every initializer of a model's package for `target`.

    Raises:
        UsageError: one initializer is larger than the target's files may be.

    """
    dtype = np.dtype(target.io_dtype)
    quantized: dict[str, QuantizedTensor] = {}
    stored: dict[str, Stored] = {}
    position = number = 0

    def add(name: str, kind: np.dtype, shape: tuple[int, ...]) -> None:
        nonlocal position, number
        size = math.prod(shape) * kind.itemsize
        if size >= _ALIGN_FROM:
            position = -(-position // _ALIGNMENT) * _ALIGNMENT
        if target.file_bytes is not None and position + size > target.file_bytes:
            if size > target.file_bytes:
                raise UsageError(
                    f"{name} has {size} bytes, and a file of target {target.name} at most {target.file_bytes}; "
                    "raise file_bytes in the target"
                )
            position, number = 0, number + 1
        stored[name] = Stored(name, kind, shape, position, number)
        position += size

    for name, shape in config.tensor_shapes().items():
        plain_table = target.embedding == "gather" and name == EMBEDDING
        if target.quantization is None or len(shape) != 2 or plain_table:
            add(name, dtype, shape)
            if target.quantization is None or len(shape) != 2 or not config.tie_embeddings:
                continue
        scheme = target.quantization.scheme_for(name)
        quantized[name] = names = quantized_tensor(name, scheme, target.provider)
        shapes = packed_shapes(shape[0], shape[1], scheme)
        add(names.packed, np.dtype(np.uint8), shapes.packed)
        add(names.scales, dtype, shapes.scales)
        if names.lookup_zero_points and (zeros := names.zero_points_shape(shape[0], shape[1])):
            add(names.lookup_zero_points, np.dtype(np.uint8), zeros)
    for name in (COS_TABLE, SIN_TABLE):
        add(name, dtype, (table_length(config), config.rotary_dim // 2))
    return Layout(stored, quantized)
