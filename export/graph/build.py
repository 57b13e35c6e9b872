"""From a model's shape to the complete graph of a target."""

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ...configs import ModelConfig, Target
from ..weights.data_file import data_name
from ..weights.layout import Layout
from .passes import (
    ROWS_OF,
    PassError,
    Rewrite,
    fold_weight_transposes,
    fuse_skip_norms,
    interface_named,
    name_interface,
    no_linear_layers,
    no_sequence_splits,
    norms_fused,
    quantize_weights,
    replace_sequence_splits,
    run_passes,
    slice_last_token,
    split_projections,
    tidy,
    weights_folded,
    widen_norms,
)
from .passes.edit import static_shape, stored_dtype
from .trace import trace

_IR_VERSION = 10
"""The file format's version that belongs to opset 21/22; readers refuse files of a later one."""


@dataclass(frozen=True)
class Graph:
    """The graph of a package before its weights are bound."""

    model: ir.Model

    @property
    def ops(self) -> dict[str, int]:
        """Operator -> nodes, most frequent first."""
        return dict(Counter(node.op_type for node in self.model.graph).most_common())

    def unbound(self) -> dict[str, ir.Value]:
        """Return the initializers without values, by name: all but the small constants that the passes made."""
        return {name: value for name, value in self.model.graph.initializers.items() if value.const_value is None}

    def bind(self, layout: Layout, folder: Path) -> None:
        """Let each initializer refer to its place in the data file of `folder`.

        Raises:
            PassError: graph and layout do not agree.

        """
        values = self.unbound()
        places: dict[str, tuple[str, int]] = {
            name: value.meta.get(ROWS_OF, (name, 0)) for name, value in values.items()
        }
        if odd := {stored for stored, _ in places.values()} ^ layout.stored.keys():
            raise PassError(f"graph and data file differ in {len(odd)} initializers, such as {min(odd)}")
        bound = dict.fromkeys(layout.stored, 0)
        for name, value in values.items():
            stored, first = places[name]
            entry, shape = layout.stored[stored], static_shape(value)
            dtype, rows = ir.DataType.from_numpy(entry.dtype), shape[0]
            if (shape[1:], stored_dtype(value)) != (entry.shape[1:], dtype) or first + rows > entry.shape[0]:
                raise PassError(f"graph and data file differ in {name}: {value.shape} {value.dtype}, {entry}")
            bound[stored] += rows
            value.const_value = ir.ExternalTensor(
                data_name(entry.file),
                entry.offset + first * entry.row_bytes,
                rows * entry.row_bytes,
                dtype,
                shape=ir.Shape(shape),
                name=name,
                base_dir=folder,
            )
        for name, rows in bound.items():
            if rows != layout.stored[name].shape[0]:
                raise PassError(f"graph and data file differ in {name}: {rows} rows, {layout.stored[name]}")

    def widen_norms(self, weights: Container[str]) -> None:
        """Compute the norms of these weights in float32."""
        run_passes(self.model, [Rewrite(lambda model: widen_norms(model, weights), name="widen_norms")])


def build_graph(config: ModelConfig, target: Target) -> Graph:
    """Trace the model and rewrite it for `target`; no weights are read, memory stays below half a gigabyte.

    Raises:
        PassError: a rewrite failed.

    """
    model = trace(config, target)
    passes = [
        Rewrite(tidy),
        Rewrite(replace_sequence_splits, leaves=[no_sequence_splits]),
        Rewrite(fold_weight_transposes, leaves=[weights_folded]),
        Rewrite(fuse_skip_norms, leaves=[norms_fused]),
    ]
    if target.last_token_logits:
        passes.append(Rewrite(slice_last_token, needs=[weights_folded]))
    # Nodes are called after the weights that they use.
    passes.append(Rewrite(name_interface, needs=[weights_folded], leaves=[interface_named]))
    if (quantization := target.quantization) is not None:

        def quantize(model: ir.Model) -> int:
            embedding = target.embedding == "quantized"
            scheme_for, level = quantization.scheme_for, quantization.accuracy_level
            return quantize_weights(model, scheme_for, level, target.provider, embedding=embedding)

        conditions = {"needs": [weights_folded, interface_named], "leaves": [no_linear_layers]}
        passes.append(Rewrite(quantize, name="quantize_weights", **conditions))
    if target.attention == "separate":
        passes.append(Rewrite(split_projections, needs=[interface_named]))
    passes.append(Rewrite(tidy, name="tidy again"))
    run_passes(model, passes)
    model.ir_version = _IR_VERSION
    model.producer_name, model.producer_version = "phi3-onnx", None
    model.graph.name = "phi3"
    return Graph(model)
