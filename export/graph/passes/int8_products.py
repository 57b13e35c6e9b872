"""`MatMulNBits` -> products of int8 weights and int8 activations, for processors that multiply whole tiles of them.

ONNX Runtime multiplies int4 weights by VNNI instructions, also where the processor has AMX; its `MatMulInteger` uses
AMX. On two cores of a Xeon with it, 512 rows of 3072 x 8192 take 8 ms where `MatMulNBits` takes 64 ms (block 128).
"""

from typing import Literal, cast

import numpy as np
import onnx_ir as ir

from ....configs import WeightScheme
from ....quantize.packed import QuantizedWeight
from .edit import CONTRIB, constant, constant_value, new_node, nodes_of, replace_node

_MOST = 127
_ZERO = 128  # of activations, which are unsigned: no other kind runs on these instructions
_TINY = 1e-30  # the scale of a row of zeros


def to_int8_products(model: ir.Model) -> int:
    """Replace every `MatMulNBits` but the head, in place; return how many that were.

    Weights become int8 with a scale for each column [N], from what the graph's own codes stand for. Activations become
    int8 with a scale for each row, a token's alone: its products are sums of integers, which are exact, and do not
    depend on how many rows there are. The head stays, since its logits are wanted of few rows.
    """
    rows: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    count = 0
    for node in nodes_of(model, "MatMulNBits", CONTRIB):
        activations = node.inputs[0]
        if activations is None or node.outputs[0].is_graph_output():
            continue
        before: list[ir.Node] = []
        if activations not in rows:
            rows[activations] = _quantized_rows(model, activations, before)
        codes, row_scales = rows[activations]
        weights, column_scales = _int8_weights(model, node)
        zero = constant(model, "int8_products.zero", np.array(_ZERO, np.uint8))
        one = constant(model, "int8_products.one", np.array(1, np.float32))
        inputs = [codes, weights, one, column_scales, zero]
        product = new_node(model, "MatMulIntegerToFloat", inputs, domain=CONTRIB, like=node.outputs)
        scaled = new_node(model, "Mul", [product.outputs[0], row_scales], like=node.outputs)
        sources = [value for value in node.inputs[1:] if value is not None]
        replace_node(model, node, [*before, product, scaled], scaled.outputs)
        for source in sources:
            if source.name and not source.uses():
                model.graph.initializers.pop(source.name)
        count += 1
    return count


def _quantized_rows(model: ir.Model, rows: ir.Value, nodes: list[ir.Node]) -> tuple[ir.Value, ir.Value]:
    """Return a value's codes, uint8 [1, rows, K], and its scales, float32 [1, rows, 1]; adds the nodes for them."""

    def add(op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        nodes.append(new_node(model, op_type, inputs, attributes))
        return nodes[-1].outputs[0]

    last = constant(model, "int8_products.last", np.array([-1], np.int64))
    outer = constant(model, "int8_products.outer", np.array([0, 2], np.int64))
    most = constant(model, "int8_products.most", np.array(1 / _MOST, np.float32))
    tiny = constant(model, "int8_products.tiny", np.array(_TINY, np.float32))
    zero = constant(model, "int8_products.zero", np.array(_ZERO, np.uint8))
    largest = add("ReduceMax", add("Abs", rows), last, keepdims=1)
    scales = add("Max", add("Mul", largest, most), tiny)
    flat = add("Squeeze", scales, outer)
    zeros = add("Expand", zero, add("Shape", flat))
    return add("QuantizeLinear", rows, flat, zeros, axis=1), scales


def _int8_weights(model: ir.Model, node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Return a node's weights, int8 [K, N], and their scales, float32 [N]; both are computed when they are written."""
    rows, columns = (node.attributes[name].as_int() for name in ("N", "K"))
    matrix = _Matrix(node, rows, columns)
    stem = node.inputs[1].name if node.inputs[1] is not None else None
    weights = ir.LazyTensor(matrix.codes, ir.DataType.INT8, ir.Shape((columns, rows)), name=f"{stem}.int8")
    scales = ir.LazyTensor(matrix.scales, ir.DataType.FLOAT, ir.Shape((rows,)), name=f"{stem}.int8_scales")
    return _initializer(model, weights), _initializer(model, scales)


def _initializer(model: ir.Model, lazy: ir.LazyTensor) -> ir.Value:
    value = ir.Value(name=lazy.name, type=ir.TensorType(lazy.dtype), shape=lazy.shape, const_value=lazy)
    model.graph.register_initializer(value)
    return value


class _Matrix:
    """The weights of a `MatMulNBits` in int8. They are worked out once, with their scales, which alone are kept."""

    def __init__(self, node: ir.Node, rows: int, columns: int) -> None:
        self._shape = rows, columns
        bits = node.attributes["bits"].as_int() if "bits" in node.attributes else 4
        # The node loses its inputs before the weights are written.
        self._sources = (*node.inputs[1:4], None)[:3]
        block_size, symmetric = node.attributes["block_size"].as_int(), self._sources[2] is None
        self._scheme = WeightScheme(cast("Literal[4, 8]", bits), block_size, symmetric)
        self._scales: np.ndarray | None = None

    def codes(self) -> ir.TensorProtocol:
        """Return the weights, int8 [K, N]."""
        weights = self._dequantized()
        most = np.maximum(weights.max(axis=1), -weights.min(axis=1))
        self._scales = scales = np.maximum(most, _TINY) / np.float32(_MOST)
        weights /= scales[:, None]
        np.rint(weights, out=weights)
        return ir.tensor(np.ascontiguousarray(weights.astype(np.int8).T))

    def scales(self) -> ir.TensorProtocol:
        """Return what one of the weights stands for in each column, float32 [N]."""
        if self._scales is None:
            self.codes()
        assert self._scales is not None
        return ir.tensor(self._scales)

    def _dequantized(self) -> np.ndarray:
        rows, columns = self._shape
        packed, scales, zeros = map(constant_value, self._sources)
        assert packed is not None and scales is not None
        blocks = -(-columns // self._scheme.block_size)
        scales = scales.astype(np.float32).reshape(rows, blocks)
        zeros = zeros if zeros is None else zeros.reshape(rows, -1)
        return QuantizedWeight(packed.reshape(rows, blocks, -1), scales, zeros, self._scheme, self._shape).dequantize()
