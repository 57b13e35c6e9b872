"""`Transpose` of a weight + `MatMul` -> `FusedMatMul` on the weight as the checkpoint stores it."""

import onnx_ir as ir

from .edit import CONTRIB, new_node, nodes_of, replace_node


def fold_weight_transposes(model: ir.Model) -> int:
    """Let each matmul read its weight as [out, in]; return how many were changed.

    So a weight is written row by row as it is read, and a tied embedding serves the head without a second copy.
    """
    count = 0
    for matmul in nodes_of(model, "MatMul"):
        hidden, weight = matmul.inputs
        transpose = weight.producer() if weight is not None else None
        if transpose is None or transpose.op_type != "Transpose":
            continue
        stored = transpose.inputs[0]
        if stored is None or not stored.is_initializer():
            continue
        node = new_node(model, "FusedMatMul", [hidden, stored], {"transB": 1}, domain=CONTRIB, like=[matmul.outputs[0]])
        replace_node(model, matmul, [node], node.outputs)
        if not transpose.outputs[0].uses():
            model.graph.remove(transpose, safe=True)
        count += 1
    return count


def linear_weight(node: ir.Node) -> ir.Value | None:
    """Return the [out, in] weight of a linear layer after `fold_weight_transposes`, None for any other node."""
    if node.op_type != "FusedMatMul" or node.domain != CONTRIB:
        return None
    weight = node.inputs[1]
    return weight if weight is not None and weight.is_initializer() else None
