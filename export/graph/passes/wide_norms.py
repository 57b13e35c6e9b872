"""Norms in float32, for providers whose float16 ones fail on rows with large values."""

from collections.abc import Container

import onnx_ir as ir

from .edit import CONTRIB, new_node, nodes_of

_NORM, _SKIP_NORM = "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"


def widen_norms(model: ir.Model, weights: Container[str]) -> int:
    """Compute the norms of these weights (by the checkpoint's names) in float32; return how many were changed.

    The residual's addition stays in float16, and so do the weights as they are stored.
    """
    count = 0
    for node in [*nodes_of(model, _NORM), *nodes_of(model, _SKIP_NORM, CONTRIB)]:
        weight = node.inputs[-1]
        if weight is None or weight.name is None or weight.name not in weights or node.inputs[0] is None:
            continue
        hidden, nodes = node.inputs[0], []
        if node.op_type == _SKIP_NORM:
            nodes.append(new_node(model, "Add", node.inputs[:2], like=[node.outputs[0]]))
            hidden = nodes[0].outputs[0]
        wide_hidden = _cast(model, hidden, ir.DataType.FLOAT)
        wide_weight = _cast(model, weight, ir.DataType.FLOAT)
        attributes = {"axis": -1, "epsilon": node.attributes["epsilon"].as_float(), "stash_type": 1}
        norm = new_node(
            model,
            _NORM,
            [wide_hidden.outputs[0], wide_weight.outputs[0]],
            attributes,
            like=[wide_hidden.outputs[0]],
        )
        assert node.outputs[0].dtype is not None
        narrow = _cast(model, norm.outputs[0], node.outputs[0].dtype)
        nodes += [wide_hidden, wide_weight, norm, narrow]
        for made, role in ((wide_hidden, "hidden/"), (wide_weight, "weight/"), (norm, ""), (narrow, "")):
            made.name = f"{node.name}/{role}{made.op_type}"
        for made in nodes:
            made.name = made.name or f"{node.name}/{made.op_type}"
            made.outputs[0].name = f"{made.name}_output_0"
            model.graph.insert_before(node, made)
        node.outputs[0].replace_all_uses_with(narrow.outputs[0])
        if len(node.outputs) > 1:  # a fused norm's others are two statistics, which nobody reads, and the sum
            node.outputs[-1].replace_all_uses_with(hidden)
        model.graph.remove(node, safe=True)
        count += 1
    return count


def _cast(model: ir.Model, value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = new_node(model, "Cast", [value], {"to": int(dtype)}, like=[value])
    node.outputs[0].type = ir.TensorType(dtype)
    return node
