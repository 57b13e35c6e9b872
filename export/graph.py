"""From a model's shape to the complete graph of a target, with a plan of what each initializer will hold."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..configs import ModelConfig, Target
from .passes import (
    Pass,
    QuantizedTensor,
    fold_weight_transposes,
    fuse_skip_norms,
    name_interface,
    quantize_weights,
    replace_sequence_splits,
    run_passes,
    slice_last_token,
    tidy,
)
from .passes.edit import static_shape, stored_dtype
from .rope import rope_tables
from .trace import COS_TABLE, SIN_TABLE, trace

_IR_VERSION = 10
"""The file format's version that belongs to opset 21/22; readers refuse files of a later one."""


@dataclass(frozen=True)
class Graph:
    """The graph of a package before its weights are bound."""

    model: ir.Model
    quantized: Mapping[str, QuantizedTensor]
    """What a quantized tensor of the checkpoint became; the other tensors are initializers of their own name."""
    tables: Mapping[str, np.ndarray]
    """Initializers that are computed, not read: the rotary tables, float32."""
    constants: frozenset[str]
    """Initializers that the passes made with their values: shapes, bounds, split sizes."""
    changes: Mapping[str, int]
    """Pass -> places changed."""

    @property
    def ops(self) -> dict[str, int]:
        """Operator -> nodes, most frequent first."""
        return dict(Counter(node.op_type for node in self.model.graph).most_common())

    def stored(self) -> list[ir.Value]:
        """Return the initializers that lie in the data file, in its order; the small constants are in the graph."""
        return [value for value in self.model.graph.initializers.values() if value.name not in self.constants]

    @property
    def num_bytes(self) -> int:
        """Bytes of everything in the data file."""
        return sum(initializer_bytes(value) for value in self.stored())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights, scales and zero points included; the rotary tables are not weights."""
        return sum(initializer_bytes(value) for value in self.stored() if value.name not in self.tables)


def initializer_bytes(value: ir.Value) -> int:
    """Return the bytes that the values of an initializer take."""
    return math.prod(static_shape(value)) * stored_dtype(value).bitwidth // 8


def build_graph(config: ModelConfig, target: Target) -> Graph:
    """Trace the model and rewrite it for `target`; no weights are read, memory stays below half a gigabyte.

    Raises:
        PassError: a rewrite failed.

    """
    model = trace(config, target)
    passes: list[tuple[str, Pass]] = [
        ("tidy", tidy),
        ("replace_sequence_splits", replace_sequence_splits),
        ("fold_weight_transposes", fold_weight_transposes),
        ("fuse_skip_norms", fuse_skip_norms),
    ]
    if target.last_token_logits:
        passes.append(("slice_last_token", slice_last_token))
    passes.append(("name_interface", name_interface))
    quantized: dict[str, QuantizedTensor] = {}
    if (quantization := target.quantization) is not None:

        def quantize(model: ir.Model) -> int:
            quantized.update(quantize_weights(model, quantization.scheme_for, quantization.accuracy_level))
            return len(quantized)

        passes.append(("quantize_weights", quantize))
    passes.append(("tidy again", tidy))
    changes = run_passes(model, passes)
    model.ir_version = _IR_VERSION
    model.producer_name, model.producer_version = "phi3-onnx", None
    model.graph.name = "phi3"
    cos, sin = rope_tables(config)
    constants = frozenset(name for name, value in model.graph.initializers.items() if value.const_value is not None)
    return Graph(model, quantized, {COS_TABLE: cos, SIN_TABLE: sin}, constants, changes)
