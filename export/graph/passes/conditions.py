"""What holds of a graph between passes. Each condition returns what is wrong, or None."""

import onnx_ir as ir

from .edit import nodes_of
from .linear import linear_weight


def no_sequence_splits(model: ir.Model) -> str | None:
    """Say which splits still go through a sequence of tensors."""
    return _named("SplitToSequence nodes are left", list(nodes_of(model, "SplitToSequence")))


def weights_folded(model: ir.Model) -> str | None:
    """Say which linear layers read their weight through a `Transpose`, not as it is stored."""
    transposed = [
        node
        for node in nodes_of(model, "MatMul")
        if (maker := node.inputs[1].producer() if node.inputs[1] is not None else None) is not None
        and maker.op_type == "Transpose"
        and maker.inputs[0] is not None
        and maker.inputs[0].is_initializer()
    ]
    return _named("MatMul nodes read a transposed weight (fold_weight_transposes comes first)", transposed)


def norms_fused(model: ir.Model) -> str | None:
    """Say which norms still follow the addition of a residual as nodes of their own."""
    apart = [
        norm
        for norm in nodes_of(model, "SimplifiedLayerNormalization")
        if norm.inputs[0] is not None and (maker := norm.inputs[0].producer()) is not None and maker.op_type == "Add"
    ]
    return _named("norms stand apart from the addition before them", apart)


def interface_named(model: ir.Model) -> str | None:
    """Say whether inputs and outputs lack the names of a package."""
    found = [value.name for value in (model.graph.inputs[0], model.graph.outputs[0])]
    if found == ["input_ids", "logits"]:
        return None
    return f"the interface is {found} (name_interface comes first)"


def no_linear_layers(model: ir.Model) -> str | None:
    """Say which linear layers were not quantized."""
    return _named("linear layers are left", [node for node in model.graph if linear_weight(node) is not None])


def _named(problem: str, nodes: list[ir.Node]) -> str | None:
    return f"{len(nodes)} {problem}, such as {nodes[0].name}" if nodes else None
