"""Linear layers -> `MatMulNBits`, the embedding's `Gather` -> `GatherBlockQuantized`."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ....configs import WeightScheme
from ....quantize.packed import packed_shapes
from ...weights.layout import QuantizedTensor, quantized_tensor
from .edit import CONTRIB, constant, new_initializer, new_node, nodes_of, replace_node, static_shape, stored_dtype
from .linear import linear_weight


def quantize_weights(
    model: ir.Model,
    scheme_for: Callable[[str], WeightScheme],
    accuracy_level: int,
    provider: str,
    *,
    embedding: bool = True,
) -> int:
    """Replace every linear layer and, if `embedding` says so, the embedding; return how many weights that were.

    The provider decides whether a symmetric embedding has zero points (`QuantizedTensor.lookup_zero_points`). A tied
    embedding and the head share one packed tensor; where the embedding stays as it is, the head has one beside it. The
    graph must have gone through `fold_weight_transposes` and have its final names.
    """
    done: dict[str, QuantizedTensor] = {}

    def stored(weight: ir.Value, name: str) -> QuantizedTensor:
        if name not in done:
            done[name] = quantized_tensor(name, scheme_for(name), provider)
            _store(model, weight, done[name])
        return done[name]

    for node in list(model.graph):
        weight = linear_weight(node)
        if weight is not None and weight.name:
            _quantize_linear(model, node, stored(weight, weight.name), _matrix_shape(weight), accuracy_level)
    for node in nodes_of(model, "Gather") if embedding else ():
        weight = node.inputs[0]
        if weight is not None and weight.is_initializer() and weight.name:
            _quantize_embedding(model, node, stored(weight, weight.name), _matrix_shape(weight))
    for name in done:
        if not model.graph.initializers[name].uses():
            model.graph.initializers.pop(name)
    return len(done)


def _quantize_linear(
    model: ir.Model, node: ir.Node, stored: QuantizedTensor, shape: tuple[int, int], accuracy_level: int
) -> None:
    rows, columns = shape
    scheme = stored.scheme
    inits = model.graph.initializers
    inputs = [node.inputs[0], inits[stored.packed], inits[stored.scales]]
    if stored.zero_points:
        inputs.append(inits[stored.zero_points])
    attributes = {"K": columns, "N": rows, "bits": scheme.bits, "block_size": scheme.block_size}
    if accuracy_level:
        attributes["accuracy_level"] = accuracy_level
    new = new_node(model, "MatMulNBits", inputs, attributes, domain=CONTRIB, like=node.outputs)
    name = (node.name or "").replace("FusedMatMul", "MatMulNBits")
    replace_node(model, node, [new], new.outputs)
    new.name = name


def _quantize_embedding(model: ir.Model, node: ir.Node, stored: QuantizedTensor, shape: tuple[int, int]) -> None:
    rows, columns = shape
    scheme = stored.scheme
    inits = model.graph.initializers
    scope = (node.name or "").removesuffix("/Gather")
    nodes: list[ir.Node] = []
    # GatherBlockQuantized wants data and zero points as matrices, MatMulNBits data in blocks: the head's tensor is
    # the stored one, and ONNX Runtime folds this reshape when it loads the package.
    packed = inits[stored.packed]
    _, blocks, blob = static_shape(packed)
    flat = new_node(
        model, "Reshape", [packed, constant(model, "embedding_rows", np.array([rows, blocks * blob], np.int64))]
    )
    flat.name, flat.outputs[0].name = f"{scope}/Reshape", f"{scope}/Reshape_output_0"
    flat.outputs[0].type, flat.outputs[0].shape = packed.type, ir.Shape([rows, blocks * blob])
    nodes.append(flat)
    inputs = [flat.outputs[0], node.inputs[1], inits[stored.scales]]
    if stored.lookup_zero_points:
        inputs.append(inits[stored.lookup_zero_points])
    attributes = {"bits": scheme.bits, "block_size": scheme.block_size, "gather_axis": 0, "quantize_axis": 1}
    gather = new_node(model, "GatherBlockQuantized", inputs, attributes, domain=CONTRIB)
    gather.name = f"{scope}/GatherBlockQuantized"
    gather.outputs[0].type = node.outputs[0].type
    nodes.append(gather)
    result = gather.outputs[0]
    if blocks * scheme.block_size != columns:  # the last block's padding
        result.name = f"{scope}/GatherBlockQuantized_output_0"
        bounds = [
            constant(model, f"embedding_{kind}", np.array([value], np.int64))
            for kind, value in (("start", 0), ("end", columns), ("axis", -1))
        ]
        cut = new_node(model, "Slice", [result, *bounds])
        cut.name = f"{scope}/Slice"
        cut.outputs[0].type = node.outputs[0].type
        nodes.append(cut)
        result = cut.outputs[0]
    replace_node(model, node, nodes, [result])


def _store(model: ir.Model, weight: ir.Value, stored: QuantizedTensor) -> None:
    """Add the initializers of a quantized weight to the graph."""
    rows, columns = _matrix_shape(weight)
    shapes = packed_shapes(rows, columns, stored.scheme)
    new_initializer(model, stored.packed, ir.DataType.UINT8, shapes.packed)
    new_initializer(model, stored.scales, stored_dtype(weight), shapes.scales)
    if stored.lookup_zero_points and (zeros := stored.zero_points_shape(rows, columns)):
        new_initializer(model, stored.lookup_zero_points, ir.DataType.UINT8, zeros)


def _matrix_shape(weight: ir.Value) -> tuple[int, int]:
    rows, columns = static_shape(weight)
    return rows, columns
