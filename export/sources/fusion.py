"""Phi-3's fused tensors out of the ones a checkpoint stores: as they are, or Llama's q/k/v and gate/up joined row-wise.

Phi-3's `qkv_proj` is the rows of q, then k, then v; its `gate_up_proj` those of gate, then up. Joining rows changes no
number, and both families rotate the two halves of a head, so nothing has to be permuted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ...configs import ModelConfig


@dataclass(frozen=True)
class Part:
    """A stored tensor that makes up some (or all) consecutive rows of one of Phi-3's."""

    name: str
    shape: tuple[int, ...]


Parts = Mapping[str, tuple[Part, ...]]
"""Phi-3's tensor name -> the stored tensors it is made of, from the first row to the last."""

ReadInto = Callable[[str, int, np.ndarray], None]
"""(stored name, first row, array to fill with the rows from there on)."""


def fused_parts(config: ModelConfig) -> dict[str, tuple[Part, ...]]:
    """Return the tensors of a checkpoint that stores what Phi-3 does."""
    return {name: (Part(name, shape),) for name, shape in config.tensor_shapes().items()}


def split_parts(config: ModelConfig) -> dict[str, tuple[Part, ...]]:
    """Return the tensors of a Llama-like checkpoint, with q, k, v and gate, up apart."""
    hidden, query, key = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    rows_of = {
        "qkv_proj": (("q_proj", query), ("k_proj", key), ("v_proj", key)),
        "gate_up_proj": (("gate_proj", config.intermediate_size), ("up_proj", config.intermediate_size)),
    }
    parts = fused_parts(config)
    for name in parts:
        module = name.removesuffix(".weight").rpartition(".")[2]
        if module in rows_of:
            parts[name] = tuple(Part(name.replace(module, part), (rows, hidden)) for part, rows in rows_of[module])
    return parts


def check_parts(parts: Parts, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Compare what is needed with the stored shapes by name; return every problem, in words."""
    problems: list[str] = []
    for part in (part for stored in parts.values() for part in stored):
        if part.name not in shapes:
            problems.append(f"{part.name} is missing")
        elif shapes[part.name] != part.shape:
            problems.append(f"{part.name} has shape {list(shapes[part.name])}, expected {list(part.shape)}")
    return problems


def read_rows(parts: tuple[Part, ...], rows: slice | None, read_into: ReadInto) -> np.ndarray:
    """Return rows of the tensor that `parts` make up, as a new float32 array; only those rows are read.

    Raises:
        ValueError: `rows` has a step other than 1.

    """
    start, stop, step = (rows or slice(None)).indices(sum(part.shape[0] for part in parts))
    if step != 1:
        raise ValueError(f"rows are read in order: expected a slice of step 1, got {rows}")
    out = np.empty((max(stop - start, 0), *parts[0].shape[1:]), np.float32)
    first = 0  # the row of the whole tensor where the part begins
    for part in parts:
        begin, end = max(start, first), min(stop, first + part.shape[0])
        if begin < end:
            read_into(part.name, begin - first, out[begin - start : end - start])
        first += part.shape[0]
    return out
