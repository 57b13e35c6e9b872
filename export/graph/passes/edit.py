"""Small helpers that passes share."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

CONTRIB = "com.microsoft"


def nodes_of(model: ir.Model, op_type: str, domain: str = "") -> Iterator[ir.Node]:
    """Yield the nodes of one operator; the graph may be changed meanwhile."""
    for node in list(model.graph):
        if node.op_type == op_type and node.domain == domain:
            yield node


def new_node(
    model: ir.Model,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | float | str] | None = None,
    *,
    domain: str = "",
    like: Sequence[ir.Value] = (),
) -> ir.Node:
    """Return a node that is not in the graph yet, its outputs with the types and shapes of the values in `like`."""
    node = ir.node(op_type, inputs, dict(attributes or {}), domain=domain, num_outputs=max(len(like), 1))
    for output, model_value in zip(node.outputs, like, strict=False):
        output.type, output.shape = model_value.type, model_value.shape
    if domain:
        model.graph.opset_imports.setdefault(domain, 1)
    return node


def replace_node(model: ir.Model, old: ir.Node, new: Sequence[ir.Node], values: Sequence[ir.Value]) -> None:
    """Put the nodes `new` in the place of `old`, and `values` in the place of its outputs."""
    ir.convenience.replace_nodes_and_values(model.graph, old, [old], new, old.outputs, values)


def constant(model: ir.Model, name: str, value: np.ndarray) -> ir.Value:
    """Return a small constant of the graph by name, made at its first use."""
    if name not in model.graph.initializers:
        tensor = ir.tensor(value, name=name)
        made = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(value.shape), const_value=tensor)
        model.graph.register_initializer(made)
    return model.graph.initializers[name]


def constant_value(value: ir.Value | None) -> np.ndarray | None:
    """Return what a value always is, where that is known: a Constant node's output or an initializer with data."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def static_shape(value: ir.Value) -> tuple[int, ...]:
    """Return the shape of a value whose every dimension is known, such as an initializer."""
    assert value.shape is not None
    return tuple(int(size) for size in value.shape.numpy())


def stored_dtype(value: ir.Value) -> ir.DataType:
    """Return the dtype of a value that has one, such as an initializer."""
    assert value.dtype is not None
    return value.dtype


def new_initializer(model: ir.Model, name: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
    """Add an initializer without values; the writer binds them."""
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    model.graph.initializers[name] = value
    return value
