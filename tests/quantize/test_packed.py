import itertools
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from phi3_onnx.configs import WeightScheme
from phi3_onnx.quantize.packed import QuantizedWeight, pack, packed_shapes

ROWS = 6
SCHEMES = [
    WeightScheme(bits, block, symmetric)
    for bits, block, symmetric in itertools.product((4, 8), (16, 32, 64, 128, 256), (True, False))
]
# 256 fills every block but the largest ones exactly; 72 and 576 leave a ragged last block (and 5 blocks of 128).
COLUMNS = (72, 256, 576)


def random_weight(scheme: WeightScheme, columns: int, scale_dtype: type = np.float32) -> QuantizedWeight:
    rng = np.random.default_rng(columns + scheme.block_size + scheme.bits)
    shapes = packed_shapes(ROWS, columns, scheme)
    blocks = shapes.scales[1]
    codes = rng.integers(0, 1 << scheme.bits, (ROWS, blocks, scheme.block_size)).astype(np.uint8)
    zeros = None if scheme.symmetric else rng.integers(0, 1 << scheme.bits, (ROWS, blocks)).astype(np.uint8)
    scales = (rng.standard_normal((ROWS, blocks)) * 0.01).astype(scale_dtype).astype(np.float32)
    return pack(codes, scales, zeros, scheme, columns)


def run_node(operator: str, inputs: dict[str, np.ndarray], first: str, dtype: type, **attributes: Any) -> np.ndarray:
    feed = inputs.pop(first)
    names = [first, *inputs] if operator == "MatMulNBits" else ["data", first, *list(inputs)[1:]]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], domain="com.microsoft", **attributes)],
        "one_node",
        [helper.make_tensor_value_info(first, helper.np_dtype_to_tensor_dtype(feed.dtype), feed.shape)],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)],
        [numpy_helper.from_array(value, name) for name, value in inputs.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {first: feed})[0])


def parameters(weight: QuantizedWeight, dtype: type) -> dict[str, np.ndarray]:
    zeros = {} if weight.zero_points is None else {"zero_points": weight.zero_points}
    return {"scales": weight.scales.astype(dtype), **zeros}


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("columns", COLUMNS)
def test_matmul_nbits_multiplies_by_exactly_what_dequantize_returns(scheme: WeightScheme, columns: int) -> None:
    weight = random_weight(scheme, columns)
    inputs = {"a": np.eye(columns, dtype=np.float32), "b": weight.packed, **parameters(weight, np.float32)}
    attributes = {"K": columns, "N": ROWS, "bits": scheme.bits, "block_size": scheme.block_size}
    product = run_node("MatMulNBits", inputs, "a", np.float32, accuracy_level=0, **attributes)
    # Bit for bit: one term of each sum is the weight, all the others are zeros.
    np.testing.assert_array_equal(product.T, weight.dequantize())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("columns", COLUMNS)
def test_gather_block_quantized_reads_the_same_bytes(scheme: WeightScheme, columns: int, dtype: type) -> None:
    weight = random_weight(scheme, columns, dtype)
    inputs = {"data": weight.rows, "ids": np.array([[0, 5], [3, 3]]), **parameters(weight, dtype)}
    attributes = {"bits": scheme.bits, "block_size": scheme.block_size, "gather_axis": 0, "quantize_axis": 1}
    rows = run_node("GatherBlockQuantized", inputs, "ids", dtype, **attributes)
    assert rows.shape == (2, 2, weight.scales.shape[1] * scheme.block_size), "padded columns come back too"
    # float16: the float32 product is rounded once, as here.
    expected = weight.dequantize()[[[0, 5], [3, 3]]].astype(dtype)
    np.testing.assert_array_equal(rows[..., :columns], expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_shapes_are_known_without_data(scheme: WeightScheme) -> None:
    weight = random_weight(scheme, 72)
    shapes = packed_shapes(ROWS, 72, scheme)
    assert (weight.packed.shape, weight.scales.shape) == (shapes.packed, shapes.scales)
    assert (None if weight.zero_points is None else weight.zero_points.shape) == shapes.zero_points
    arrays = [weight.packed, weight.scales.astype(np.float16), weight.zero_points]
    assert shapes.num_bytes(2) == sum(array.nbytes for array in arrays if array is not None)


def test_unpacking_returns_what_was_packed() -> None:
    scheme = WeightScheme(4, 16, symmetric=False)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (2, 3, 16)).astype(np.uint8)
    zeros = rng.integers(0, 16, (2, 3)).astype(np.uint8)
    weight = pack(codes, np.ones((2, 3), np.float32), zeros, scheme, 40)
    np.testing.assert_array_equal(weight.codes(), codes)
    np.testing.assert_array_equal(weight.zeros(), zeros)
    assert weight.packed[0, 0, 0] == codes[0, 0, 0] + 16 * codes[0, 0, 1]


def test_arrays_that_do_not_fit_are_refused() -> None:
    scheme = WeightScheme(4, 16, symmetric=True)
    codes = np.zeros((2, 3, 16), np.uint8)
    with pytest.raises(ValueError, match="do not fit 20 columns"):
        pack(codes, np.ones((2, 3), np.float32), None, scheme, 20)
    with pytest.raises(ValueError, match="zero points"):
        pack(codes, np.ones((2, 3), np.float32), np.zeros((2, 3), np.uint8), scheme, 40)
