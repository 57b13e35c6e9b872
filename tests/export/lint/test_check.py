"""The lint of exported graphs: nothing to say of what is exported, and each planted fault is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from phi3_onnx.configs import find_target
from phi3_onnx.export import export, open_checkpoint
from phi3_onnx.export.graph.build import build_graph
from phi3_onnx.export.lint.check import LintError, check_graph, find_problems
from phi3_onnx.export.lint.kernel_tables import KernelTable, kernel_tables

Make = Callable[..., Path]

TARGET = "cuda-int4-rtn"
OPEN = KernelTable(
    "AnyExecutionProvider",
    "1.0.0",
    {"::Abs": [(6, 12, [{"T": ["float"]}]), (13, None, [{"T": ["float"]}, {"T": ["float16"]}])]},
    {},
)


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op_type)


@pytest.fixture
def cuda_graph(tiny_package: Make) -> ir.Model:
    """Return a graph of one's own; that nothing is said of any target's is shown in test_layout.py."""
    model = ir.load(tiny_package("gqa", TARGET) / "model.onnx")
    assert find_problems(model, "cuda") == []
    return model


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_there_are_tables_of_the_oldest_and_a_new_version(provider: str) -> None:
    versions = [table.onnxruntime for table in kernel_tables(provider)]
    assert len(versions) >= 2
    assert versions[0] == "1.24.4"


class TestPlanted:
    def test_no_zero_points_with_8_bit_lookup_on_cuda(self, cuda_graph: ir.Model) -> None:
        node_of(cuda_graph, "GatherBlockQuantized").resize_inputs(3)
        (problem,) = find_problems(cuda_graph, "cuda")
        assert problem.startswith(
            "/model/embed_tokens/GatherBlockQuantized: no zero points with 8-bit GatherBlockQuantized; "
        )
        assert "1.24.4 to 1.28.0" in problem
        assert "store zero points" in problem
        assert find_problems(cuda_graph, "cpu") == []

    def test_an_operator_nobody_knows(self, cuda_graph: ir.Model) -> None:
        node_of(cuda_graph, "Sigmoid").op_type = "Sigmund"
        problems = find_problems(cuda_graph, "cuda")
        assert len(problems) == len(kernel_tables("cuda"))
        assert "does not know an operator Sigmund; express it by others" in problems[0]

    def test_an_operator_that_cuda_has_no_kernel_for(self, cuda_graph: ir.Model) -> None:
        node_of(cuda_graph, "Sigmoid").op_type = "BitwiseNot"
        assert (
            "CUDAExecutionProvider of ONNX Runtime 1.24.4 has no kernel for BitwiseNot"
            in (find_problems(cuda_graph, "cuda")[0])
        )

    def test_a_type_that_a_kernel_does_not_take(self, cuda_graph: ir.Model) -> None:
        attention = node_of(cuda_graph, "GroupQueryAttention")
        lengths = attention.inputs[5]
        assert lengths is not None
        lengths.type = ir.TensorType(ir.DataType.INT64)
        problems = find_problems(cuda_graph, "cuda")
        assert any(
            "GroupQueryAttention has total_sequence_length of int32 beside M of int64" in line for line in problems
        )

    def test_a_dtype_that_cuda_does_not_compute_in(self, cuda_graph: ir.Model) -> None:
        attention = node_of(cuda_graph, "GroupQueryAttention")
        for value in (*attention.inputs[:5], *attention.inputs[7:], *attention.outputs):
            if value is not None and value.dtype == ir.DataType.FLOAT16:
                value.type = ir.TensorType(ir.DataType.FLOAT)
        problems = find_problems(cuda_graph, "cuda")
        assert any("has no kernel for GroupQueryAttention with" in line and "T float" in line for line in problems)

    def test_a_newer_opset_than_there_are_kernels_for(self, cuda_graph: ir.Model) -> None:
        cuda_graph.graph.opset_imports[""] = 25
        old = [line for line in find_problems(cuda_graph, "cuda") if "1.24.4 has no kernel for Squeeze" in line]
        assert old
        assert "of version 25" in old[0]

    @pytest.mark.parametrize(("change", "said"), [("add", "knows no attribute 'colour' of"), ("drop", "lacks the")])
    def test_attributes(self, cuda_graph: ir.Model, change: str, said: str) -> None:
        attributes = node_of(cuda_graph, "MatMulNBits").attributes
        if change == "add":
            attributes["colour"] = ir.AttrInt64("colour", 1)
        else:
            del attributes["K"]
        assert said in find_problems(cuda_graph, "cuda")[0]

    def test_bits_that_cuda_has_not(self, cuda_graph: ir.Model) -> None:
        node_of(cuda_graph, "MatMulNBits").attributes["bits"] = ir.AttrInt64("bits", 3)
        assert "bits other than" in find_problems(cuda_graph, "cuda")[0]


class TestDirectML:
    """On a graph of other operators, since what is wrong with one of DirectML's is then no part of this."""

    def test_gather_block_quantized(self, cuda_graph: ir.Model) -> None:
        problems = find_problems(cuda_graph, "dml")
        assert problems == [
            "/model/embed_tokens/GatherBlockQuantized: a GatherBlockQuantized, which DirectML does not have; "
            "store the embedding in float16 and look it up with Gather"
        ]

    def test_a_ragged_matrix(self, cuda_graph: ir.Model) -> None:
        node_of(cuda_graph, "MatMulNBits").attributes["block_size"] = ir.AttrInt64("block_size", 96)
        assert any("whose K is not a multiple of its block" in line for line in find_problems(cuda_graph, "dml"))

    def test_rotating_a_part_of_a_split(self, cuda_graph: ir.Model) -> None:
        part = node_of(cuda_graph, "Split").outputs[0]
        cuda_graph.graph.append(ir.node("RotaryEmbedding", [part], domain="com.microsoft", name="planted"))
        assert any(line.startswith("planted: a RotaryEmbedding of a part") for line in find_problems(cuda_graph, "dml"))

    def test_a_newer_opset(self, cuda_graph: ir.Model) -> None:
        cuda_graph.graph.opset_imports[""] = 23
        assert find_problems(cuda_graph, "dml")[0].startswith("opset 23 is newer than 22, the last that dml has; ")


class TestWebGpu:
    """What is said of the target's own graphs, nothing, is shown in test_layout.py."""

    @pytest.fixture
    def graph(self, tiny_package: Make) -> ir.Model:
        model = ir.load(tiny_package("gqa", "web-int4") / "model.onnx")
        assert find_problems(model, "webgpu") == []
        return model

    def test_an_operator_without_a_kernel(self, graph: ir.Model) -> None:
        node_of(graph, "Sigmoid").op_type = "HardSwish"
        (problem,) = {line.partition(": ")[2] for line in find_problems(graph, "webgpu")}
        assert problem.startswith(
            "WebGpuExecutionProvider of ONNX Runtime 1.30.0 has no kernel for HardSwish of version"
        )

    def test_states_in_a_type_without_a_kernel(self, graph: ir.Model) -> None:
        gate = node_of(graph, "Mul")
        for value in (*gate.inputs, *gate.outputs):
            assert value is not None
            value.type = ir.TensorType(ir.DataType.DOUBLE)
        assert any("has no kernel for Mul with" in line and "double" in line for line in find_problems(graph, "webgpu"))

    def test_lengths_are_computed_by_the_cpu(self, graph: ir.Model) -> None:
        lengths = node_of(graph, "ReduceSum")
        assert lengths.inputs[0] is not None
        assert lengths.inputs[0].dtype == ir.DataType.INT64  # which WebGPU has no kernel for
        lengths.op_type = "Multinomial"
        assert find_problems(graph, "webgpu") != []


def test_many_problems_are_one_line(cuda_graph: ir.Model) -> None:
    for node in cuda_graph.graph:
        node.attributes["colour"] = ir.AttrInt64("colour", 1)
    with pytest.raises(LintError, match=r"^the graph does not suit cuda: [^\n]+ and \d+ more problems$"):
        check_graph(cuda_graph, "cuda")


def test_a_kernel_of_an_open_version_does_not_know_later_definitions() -> None:
    assert OPEN.alternatives("", "Abs", 6) == OPEN.alternatives("", "Abs", 9) == [{"T": ["float"]}]
    assert OPEN.alternatives("", "Abs", 13) == [{"T": ["float"]}, {"T": ["float16"]}]
    assert OPEN.alternatives("", "Abs", 14) is None
    assert OPEN.alternatives("", "Neg", 13) is None


def test_a_graph_that_is_refused_is_never_written(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(*arguments: Any) -> Any:
        made = build_graph(*arguments)
        node_of(made.model, "GatherBlockQuantized").resize_inputs(3)
        return made

    monkeypatch.setattr("phi3_onnx.export.graph.build.build_graph", planted)
    with pytest.raises(LintError, match="no zero points with 8-bit GatherBlockQuantized"):
        export(tiny("gqa"), TARGET, tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


def test_a_target_with_other_bits_for_the_embedding_is_fine(tiny: Make) -> None:
    target = find_target(TARGET)
    assert target.quantization
    four = replace(target, quantization=replace(target.quantization, overrides=()))
    model = build_graph(open_checkpoint(tiny("gqa")).config, four).model
    assert len(node_of(model, "GatherBlockQuantized").inputs) == 3
    assert find_problems(model, "cuda") == []
