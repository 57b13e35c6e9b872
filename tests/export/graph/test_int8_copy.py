"""`decode.onnx` in int8: what its products are, and that a token's logits do not depend on what else is in a run."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from phi3_onnx.configs import PackageError, WeightScheme
from phi3_onnx.export.graph.int8_copy import write_int8_graph
from phi3_onnx.export.graph.passes.int8_products import to_int8_products
from phi3_onnx.quantize.packed import QuantizedWeight
from phi3_onnx.quantize.rtn import quantize_rtn
from phi3_onnx.runtime.engines.arena import Arena
from phi3_onnx.runtime.engines.layout import RowRun
from phi3_onnx.runtime.engines.packed import PackedGraph
from phi3_onnx.runtime.engines.prepacked import MachineCopy
from phi3_onnx.runtime.package import open_package

Make = Callable[..., Path]
ROWS, COLUMNS, WIDTH = 5, 72, 24  # tokens, K (two blocks and a half), N

FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
exact_products = pytest.mark.skipif(
    "avx512_vnni" not in FLAGS and "avx_vnni" not in FLAGS,
    reason="without VNNI, sums of two products are cut to 16 bits: `tune` measures that and keeps no copy",
)


def one_product(weight: QuantizedWeight) -> ir.Model:
    """Return a graph of one `MatMulNBits` with an `Identity` behind it: the head alone gives an output of the graph."""
    inputs = ["x", "w.qweight", "w.scales", *(["w.zeros"] if weight.zero_points is not None else [])]
    scheme = weight.scheme
    sizes: dict[str, Any] = {"K": COLUMNS, "N": WIDTH, "bits": scheme.bits, "block_size": scheme.block_size}
    nodes = [
        helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", accuracy_level=4, **sizes),
        helper.make_node("Identity", ["y"], ["out"]),
    ]
    stored = {"w.qweight": weight.packed, "w.scales": weight.scales}
    if weight.zero_points is not None:
        stored["w.zeros"] = weight.zero_points
    graph = helper.make_graph(
        nodes,
        "one product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "rows", COLUMNS])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, "rows", WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def run(model: ir.Model, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": rows})[0])


@exact_products
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_product_is_that_of_int8_rows_and_int8_columns(bits: int, symmetric: bool) -> None:
    random = np.random.default_rng(3)
    scheme = WeightScheme(bits, 32, symmetric)  # pyright: ignore[reportArgumentType]
    weight = quantize_rtn(random.standard_normal((WIDTH, COLUMNS)).astype(np.float32), scheme, "float32")
    model = one_product(weight)
    assert to_int8_products(model) == 1
    assert not [name for name in model.graph.initializers if name.startswith("w.") and "int8" not in name]
    rows = random.standard_normal((1, ROWS, COLUMNS)).astype(np.float32) * np.array([[[1], [9], [0.01], [0], [3]]])
    rows = rows.astype(np.float32)
    row_scales = np.maximum(np.abs(rows[0]).max(axis=1) / 127, 1e-30)
    column_scales = np.abs(weight.dequantize()).max(axis=1) / 127
    codes = np.rint(rows[0] / row_scales[:, None]).astype(int), np.rint(weight.dequantize() / column_scales[:, None])
    expected = codes[0] @ codes[1].T.astype(int) * row_scales[:, None] * column_scales
    found = run(model, rows)[0]
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6), "the integers are exact, their scales rounded"
    assert not found[3].any(), "and a row of zeros gives zeros"
    for row in range(ROWS):
        assert np.array_equal(run(model, rows[:, row : row + 1])[0, 0], found[row]), (
            "each row alone gives the same bits"
        )


@pytest.mark.parametrize("name", ["gqa", "window", "longrope"])
def test_a_token_has_the_same_logits_in_every_run(name: str, tiny_package: Make, tmp_path: Path) -> None:
    package = open_package(tiny_package(name, "cpu-int4-rtn"))
    write_int8_graph(package.folder / "decode.onnx", tmp_path / "decode.onnx")
    own, copy = PackedGraph(package), PackedGraph(package, copy=MachineCopy(tmp_path / "decode.onnx", int8=True))
    assert copy.int8 and copy.padding is not None
    assert copy.identity != own.identity, "what is kept of texts on disk is apart"
    count = min(30, own.switch or 30)
    tokens = np.random.default_rng(1).integers(5, 300, count).tolist()
    whole = copy.run(Arena(copy.shape, 1, count), [RowRun(0, 0, tokens, count)])[0]
    arena, pieces = Arena(copy.shape, 3, count, count), [0, 1, 2, 7, 20, count]
    for start, stop in pairwise(pieces):
        row = RowRun(1, start, tokens[start:stop], stop - start)
        beside = [RowRun(0, 0, tokens[:start]), RowRun(2, 0, tokens[5:9])] if start else []
        found = copy.run(arena, [row, *beside])[0]
        assert np.array_equal(found, whole[start:stop])
    plain = own.run(Arena(own.shape, 1, count), [RowRun(0, 0, tokens, count)])[0]
    apart = np.sqrt(np.mean((whole - plain) ** 2, axis=1)) / plain.std(axis=1)
    assert 0 < apart.max() < 0.3


def test_each_matrix_is_worked_out_once_when_it_is_written(
    tiny_package: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, worked_out = tiny_package("gqa", "cpu-int4-rtn") / "decode.onnx", list[tuple[int, int]]()
    dequantize = QuantizedWeight.dequantize

    def counted(weight: QuantizedWeight) -> np.ndarray:
        worked_out.append(weight.shape)
        return dequantize(weight)

    monkeypatch.setattr(QuantizedWeight, "dequantize", counted)
    model = ir.load(graph)
    count = to_int8_products(model)
    assert count and not worked_out, "not all of them are in memory at a time"
    write_int8_graph(graph, tmp_path / "decode.onnx")
    assert len(worked_out) == count


def test_a_graph_that_is_none_is_refused(tiny_package: Make, tmp_path: Path) -> None:
    shutil.copy(tiny_package("gqa", "cpu-int4-rtn") / "decode.onnx", tmp_path / "cut.onnx")
    whole = (tmp_path / "cut.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PackageError, match=r"cut\.onnx cannot be read"):
        write_int8_graph(tmp_path / "cut.onnx", tmp_path / "out.onnx")
