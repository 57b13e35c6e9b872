"""`Split` behind one matrix of q, k and v -> a linear layer each, on rows of what the package stores as one matrix."""

import onnx_ir as ir

from ...weights.layout import PROJECTIONS, part_name
from .edit import constant_value, new_initializer, new_node, nodes_of, replace_node, static_shape, stored_dtype
from .linear import linear_weight

ROWS_OF = "rows_of"
"""In an initializer's `meta`: (the stored initializer that it is rows of, the first row)."""


def split_projections(model: ir.Model) -> int:
    """Give q, k and v linear layers of their own; return how many fused ones were split.

    Rows of a matrix, quantized or not, lie one after the other in the data file, so the parts are pieces of the whole
    one's initializers, and nothing is stored twice or rounded otherwise. DirectML needs this: its `RotaryEmbedding` is
    wrong behind a `Split` when graphs are captured (onnxruntime-directml 1.24.4).
    """
    count = 0
    for split in nodes_of(model, "Split"):
        fused, sizes = split.inputs[0], constant_value(split.inputs[1])
        linear = fused.producer() if fused is not None else None
        if linear is None or sizes is None or len(sizes) != len(PROJECTIONS) or not _is_fused(linear):
            continue
        assert linear.inputs[0] is not None
        first, outputs, nodes = 0, [], []
        for part, rows in zip(PROJECTIONS, map(int, sizes), strict=True):
            values = [linear.inputs[0]]
            for whole in linear.inputs[1:]:
                assert whole is not None
                values.append(_rows(model, whole, part, first, rows))
            attributes = {name: attribute.value for name, attribute in linear.attributes.items()}
            if "N" in attributes:
                attributes["N"] = rows
            node = new_node(
                model, linear.op_type, values, attributes, domain=linear.domain, like=[split.outputs[len(nodes)]]
            )
            node.name = part_name(linear.name or "", part)
            node.outputs[0].name = f"{node.name}_output_0"
            nodes.append(node)
            outputs.append(node.outputs[0])
            first += rows
        whole_inputs = [value for value in linear.inputs[1:] if value is not None]
        replace_node(model, split, nodes, outputs)
        model.graph.remove(linear, safe=True)
        for value in whole_inputs:
            model.graph.initializers.pop(value.name or "")
        count += 1
    return count


def _is_fused(node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type == "MatMulNBits" else linear_weight(node)
    return weight is not None and bool(weight.name) and "qkv_proj" in (weight.name or "")


def _rows(model: ir.Model, whole: ir.Value, part: str, first: int, rows: int) -> ir.Value:
    assert whole.name
    value = new_initializer(model, part_name(whole.name, part), stored_dtype(whole), (rows, *static_shape(whole)[1:]))
    value.meta[ROWS_OF] = (whole.name, first)
    return value
