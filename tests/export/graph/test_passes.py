"""Each pass on a small graph by hand: what ONNX Runtime computes before and after, and what the graph looks like."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from phi3_onnx.configs import WeightScheme
from phi3_onnx.export.graph.passes import (
    ROWS_OF,
    PassError,
    Rewrite,
    fold_weight_transposes,
    fuse_skip_norms,
    interface_named,
    name_interface,
    no_linear_layers,
    no_sequence_splits,
    norms_fused,
    quantize_weights,
    replace_sequence_splits,
    run_passes,
    slice_last_token,
    split_projections,
    tidy,
    weights_folded,
    widen_norms,
)
from phi3_onnx.export.graph.passes.edit import constant, constant_value
from phi3_onnx.export.graph.passes.kv_cache import cache_scales, quantize_cache
from phi3_onnx.export.graph.passes.linear import linear_weight
from phi3_onnx.export.graph.passes.packed import pack_tokens, packable
from phi3_onnx.quantize.packed import QuantizedWeight
from phi3_onnx.quantize.rtn import quantize_rtn

Node = tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]]
Typed = Mapping[str, tuple[type, Sequence[int | str]]]

CONTRIB = {
    "FusedMatMul",
    "GroupQueryAttention",
    "MatMulNBits",
    "SkipSimplifiedLayerNormalization",
}
NORM = {"axis": -1, "epsilon": 0.25, "stash_type": 1}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def graph(
    nodes: Sequence[Node], inputs: Typed, outputs: Typed, weights: Mapping[str, np.ndarray], within: Typed | None = None
) -> ir.Model:
    """Return a graph; `within` are the types of values in between, which the tracer leaves there, too."""

    def typed(values: Typed) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in values.items()
        ]

    made = helper.make_graph(
        [
            helper.make_node(op, into, out, name=f"n{i}", domain="com.microsoft" if op in CONTRIB else "", **attributes)
            for i, (op, into, out, attributes) in enumerate(nodes)
        ],
        "by_hand",
        typed(inputs),
        typed(outputs),
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
        value_info=typed(within or {}),
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(made, opset_imports=opsets, ir_version=10))


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feeds)]


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def require_close(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float = 1e-5) -> None:
    assert [value.shape for value in found] == [value.shape for value in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)


F3: tuple[type, Sequence[int | str]] = (np.float32, ["b", "s", 4])


class TestLinear:
    NODES: ClassVar[Sequence[Node]] = [
        ("Transpose", ["w"], ["t"], {"perm": [1, 0]}),
        ("MatMul", ["x", "t"], ["a"], {}),
        ("MatMul", ["x", "t"], ["c"], {}),
        ("Transpose", ["x"], ["xt"], {"perm": [0, 2, 1]}),
        ("MatMul", ["x", "xt"], ["d"], {}),
        ("MatMul", ["x", "v"], ["e"], {}),
        ("Transpose", ["u"], ["ut"], {"perm": [1, 0]}),
        ("MatMul", ["x", "ut"], ["f"], {}),
        ("Relu", ["ut"], ["g"], {}),
    ]
    WEIGHTS: ClassVar = {"w": random(3, 4), "v": random(4, 2), "u": random(5, 4)}

    def made(self) -> ir.Model:
        outputs: Typed = {name: (np.float32, ["b", "s", None]) for name in "acdef"}  # pyright: ignore[reportAssignmentType]
        return graph(self.NODES, {"x": F3}, {**outputs, "g": (np.float32, [4, 5])}, self.WEIGHTS)

    def test_weights_are_read_as_they_are_stored(self) -> None:
        model, x = self.made(), random(2, 3, 4)
        expected = run(model, x=x)
        assert weights_folded(model) == (
            "3 MatMul nodes read a transposed weight (fold_weight_transposes comes first), such as n1"
        )
        assert fold_weight_transposes(model) == 3
        # One transpose has another reader, and one is of no weight.
        assert ops(model) == ["FusedMatMul"] * 2 + ["Transpose", "MatMul", "MatMul", "Transpose", "FusedMatMul", "Relu"]
        assert weights_folded(model) is None
        assert [weight.name for node in model.graph if (weight := linear_weight(node))] == ["w", "w", "u"]
        require_close(run(model, x=x), expected)
        assert fold_weight_transposes(model) == 0

    def test_products_of_two_activations_are_no_linear_layers(self) -> None:
        nodes: Sequence[Node] = [("FusedMatMul", ["x", "x"], ["y"], {"transB": 1})]
        model = graph(nodes, {"x": F3}, {"y": (np.float32, ["b", "s", "s"])}, {})
        (node,) = model.graph
        assert linear_weight(node) is None
        assert no_linear_layers(model) is None

    def test_linear_layers_that_are_left_are_counted(self) -> None:
        model = self.made()
        fold_weight_transposes(model)
        (first, *_) = (node for node in model.graph if linear_weight(node))
        first.name = "first"
        assert no_linear_layers(model) == "3 linear layers are left, such as first"


class TestSplits:
    @pytest.mark.parametrize(
        ("sizes", "lengths"), [(np.array(2), [2, 2, 2]), (np.array(4), [4, 2]), (np.array([1, 2, 3]), [1, 2, 3])]
    )
    def test_a_split_through_a_sequence(self, sizes: np.ndarray, lengths: list[int]) -> None:
        places = range(len(lengths))
        nodes: list[Node] = [("SplitToSequence", ["x", "sizes"], ["parts"], {"axis": -1})]
        # In another order than that of the parts.
        nodes += [("SequenceAt", ["parts", f"at{i}"], [f"y{i}"], {}) for i in reversed(places)]
        weights = {"sizes": sizes.astype(np.int64), **{f"at{i}": np.array(i, np.int64) for i in places}}
        outputs: Typed = {f"y{i}": (np.float32, ["b", "s", lengths[i]]) for i in places}
        model, x = graph(nodes, {"x": (np.float32, ["b", "s", 6])}, outputs, weights), random(2, 3, 6)
        expected = run(model, x=x)
        assert no_sequence_splits(model) == "1 SplitToSequence nodes are left, such as n0"
        assert replace_sequence_splits(model) == 1
        assert no_sequence_splits(model) is None
        assert ops(model) == ["Split"]
        (split,) = model.graph
        assert [str(output.shape) for output in split.outputs] == [f"[b,s,{length}]" for length in lengths]
        assert {output.dtype for output in split.outputs} == {ir.DataType.FLOAT}
        for ours, theirs in zip(run(model, x=x), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_two_splits_share_their_sizes_and_a_middle_axis_has_no_length(self) -> None:
        nodes: list[Node] = [
            ("SplitToSequence", ["x", "sizes"], ["parts"], {"axis": 1}),
            ("SequenceAt", ["parts", "at"], ["y"], {}),
            ("SplitToSequence", ["x", "sizes"], ["others"], {"axis": -1}),
            ("SequenceAt", ["others", "at"], ["z"], {}),
        ]
        weights = {"sizes": np.array([2, 4]), "at": np.array(1)}
        outputs: Typed = {"y": (np.float32, ["b", 4, 6]), "z": (np.float32, ["b", 6, 4])}
        model, x = graph(nodes, {"x": (np.float32, ["b", "s", 6])}, outputs, weights), random(2, 6, 6)
        expected = run(model, x=x)
        assert replace_sequence_splits(model) == 2
        assert [name for name in model.graph.initializers if name.startswith("split_sizes")] == ["split_sizes_2_4"]
        require_close(run(model, x=x), expected, 0)

    def test_a_sequence_that_is_read_otherwise_stays(self) -> None:
        nodes: list[Node] = [
            ("SplitToSequence", ["x", "sizes"], ["parts"], {"axis": -1}),
            ("SequenceAt", ["parts", "at"], ["y"], {}),
            ("SequenceLength", ["parts"], ["n"], {}),
            ("SplitToSequence", ["x", "given"], ["others"], {"axis": -1}),
            ("SequenceAt", ["others", "at"], ["z"], {}),
            ("SplitToSequence", ["x", "sizes"], ["more"], {"axis": -1}),
            ("SequenceAt", ["more", "where"], ["u"], {}),
        ]
        outputs: Typed = {
            "y": (np.float32, ["b", "s", 4]),
            "n": (np.int64, []),
            "z": (np.float32, ["b", "s", "k"]),
            "u": (np.float32, ["b", "s", 3]),
        }
        inputs: Typed = {"x": (np.float32, ["b", "s", 6]), "given": (np.int64, [2]), "where": (np.int64, [])}
        model = graph(nodes, inputs, outputs, {"sizes": np.array([2, 4]), "at": np.array(1)})
        before = ops(model)
        assert replace_sequence_splits(model) == 0
        assert ops(model) == before


class TestNorms:
    def made(self, dtype: type = np.float32) -> ir.Model:
        """Three norms: of the input, of a sum that goes on, and of one that does not; and a sum that is an output."""
        nodes: Sequence[Node] = [
            ("SimplifiedLayerNormalization", ["x", "g0"], ["a"], NORM),
            ("Add", ["x", "a"], ["s1"], {}),
            ("SimplifiedLayerNormalization", ["s1", "g1"], ["c"], NORM),
            ("Add", ["s1", "c"], ["s2"], {}),
            ("SimplifiedLayerNormalization", ["s2", "g2"], ["d"], NORM),
            ("Add", ["a", "c"], ["s3"], {}),
            ("SimplifiedLayerNormalization", ["s3", "g3"], ["e"], NORM),
            ("Neg", ["d"], ["y"], {}),
            ("Neg", ["e"], ["z"], {}),
        ]
        weights = {f"g{i}": random(4, seed=i).astype(dtype) for i in range(4)}
        row: tuple[type, Sequence[int | str]] = (dtype, ["b", "s", 4])
        within: Typed = dict.fromkeys(("a", "c", "d", "e", "s1", "s2"), row)
        return graph(nodes, {"x": row}, {"y": row, "z": row, "s3": row}, weights, within)

    def test_a_norm_is_fused_with_the_sum_before_it(self) -> None:
        model, x = self.made(), random(2, 3, 4)
        expected = run(model, x=x)
        assert norms_fused(model) == "3 norms stand apart from the addition before them, such as n2"
        assert fuse_skip_norms(model) == 3
        assert norms_fused(model) is None
        fused = list(model.graph)[1:4]
        assert ops(model)[0] == "SimplifiedLayerNormalization"
        assert {node.op_type for node in fused} == {"SkipSimplifiedLayerNormalization"}
        assert ops(model)[4:] == ["Neg", "Neg"]
        assert [[bool(output.name) for output in node.outputs] for node in fused] == [
            [True, False, False, True],
            [True],
            [True, False, False, True],
        ]
        assert [attributes(node) for node in fused] == [{"epsilon": 0.25}] * 3
        assert str(fused[0].outputs[3].shape) == "[b,s,4]"
        assert fused[0].outputs[3].dtype == ir.DataType.FLOAT
        require_close(run(model, x=x), expected)

    @pytest.mark.parametrize("fused", [False, True])
    def test_chosen_norms_are_computed_in_float32(self, fused: bool) -> None:
        model, x = self.made(np.float16), random(2, 3, 4).astype(np.float16)
        model.graph.outputs.pop()
        if fused:
            fuse_skip_norms(model)
        for i, node in enumerate(model.graph):
            node.name = f"/norm{i}"
        expected = run(model, x=x)
        assert widen_norms(model, {"g1", "g2", "g3", "elsewhere"}) == 3
        norms = [node for node in model.graph if node.op_type == "SimplifiedLayerNormalization"]
        assert [node.inputs[0].dtype for node in norms if node.inputs[0] is not None] == [
            ir.DataType.FLOAT16,
            *[ir.DataType.FLOAT] * 3,
        ]
        assert [attributes(node) for node in norms] == [NORM] * 4
        made = [node for node in model.graph if node.name and "/" in node.name[1:]]
        kinds = ["hidden/Cast", "weight/Cast", "SimplifiedLayerNormalization", "Cast"]
        first = "/norm1" if fused else "/norm2"
        assert [node.name for node in made if (node.name or "").startswith(first)] == [
            f"{first}/{kind}" for kind in (["Add"] if fused else []) + kinds
        ]
        assert all(node.outputs[0].name == f"{node.name}_output_0" for node in made)
        assert all(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values())
        # float16 keeps 11 bits; sums of rows of 4 differ by a few of its roundings.
        require_close(run(model, x=x), expected, 4e-3)


class TestLastToken:
    def test_the_head_runs_on_the_last_position(self) -> None:
        nodes: Sequence[Node] = [
            ("Relu", ["x"], ["h"], {}),
            ("FusedMatMul", ["h", "w"], ["y"], {"transB": 1}),
        ]
        weights = {"w": random(3, 4)}
        model = graph(nodes, {"x": F3}, {"y": (np.float32, ["b", "s", 3])}, weights, {"h": F3})
        x = random(2, 5, 4)
        (expected,) = run(model, x=x)
        assert slice_last_token(model) == 1
        assert str(model.graph.outputs[0].shape) == "[b,1,3]"
        assert ops(model) == ["Relu", "Slice", "FusedMatMul"]
        assert str(list(model.graph)[1].outputs[0].shape) == "[b,1,4]"
        require_close(run(model, x=x), [expected[:, -1:]])

    def test_a_graph_that_ends_otherwise_is_refused(self) -> None:
        model = graph([("Relu", ["x"], ["y"], {})], {"x": F3}, {"y": F3}, {})
        with pytest.raises(ValueError, match="not made by a linear head"):
            slice_last_token(model)


class TestInterface:
    def made(self, positions: bool = False, length: int | str = "s7", layers: int = 2) -> ir.Model:
        cache: tuple[type, Sequence[int | str]] = (np.float32, ["s0", 1, "s1", 8])
        grown: tuple[type, Sequence[int | str]] = (np.float32, ["s0", 1, "s9", 8])
        row: tuple[type, Sequence[int | str]] = (np.float32, ["s0", "s7", 4])
        pairs = [f"{kind}{i}" for i in range(layers) for kind in "kv"]
        nodes: list[Node] = [
            ("Gather", ["model.embed_tokens.weight", "ids"], ["h0"], {}),
            ("FusedMatMul", ["h0", "model.layers.0.mlp.up.weight"], ["h1"], {"transB": 1}),
            ("Relu", ["h1"], ["h2"], {}),
            ("Relu", ["h2"], ["h3"], {}),
            ("Mul", ["h3", "table"], ["h4"], {}),
            ("FusedMatMul", ["h4", "lm_head.weight"], ["out"], {"transB": 1}),
            *(("Concat", [name, name], [f"new_{name}"], {"axis": 2}) for name in pairs),
        ]
        inputs: dict[str, Any] = {"ids": (np.int64, ["s0", "s7"]), "m": (np.int64, ["s0", "s8"])}
        inputs |= dict.fromkeys(pairs, cache)
        if positions:
            inputs["p"] = (np.int64, ["s0", "s7"])
        outputs: dict[str, Any] = {"out": (np.float32, ["s0", length, 6])}
        outputs |= {f"new_{name}": grown for name in pairs}
        weights = {
            "model.embed_tokens.weight": random(6, 4),
            "model.layers.0.mlp.up.weight": random(4, 4),
            "table": random(4),
            "lm_head.weight": random(6, 4),
        }
        return graph(nodes, inputs, outputs, weights, dict.fromkeys(("h0", "h1", "h2", "h3", "h4"), row))

    @pytest.mark.parametrize("layers", [1, 2])
    @pytest.mark.parametrize("positions", [False, True])
    def test_inputs_and_outputs(self, positions: bool, layers: int) -> None:
        model = self.made(positions, layers=layers)
        assert interface_named(model) == "the interface is ['ids', 'out'] (name_interface comes first)"
        assert name_interface(model) == 2 + positions + 1 + 4 * layers
        assert interface_named(model) is None
        batch = "batch_size,1,"
        shapes = {value.name: str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)}
        expected = {"input_ids": "[batch_size,sequence_length]", "attention_mask": "[batch_size,total_sequence_length]"}
        if positions:
            expected["position_ids"] = "[batch_size,sequence_length]"
        pairs = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
        expected |= {f"past_key_values.{pair}": f"[{batch}past_sequence_length,8]" for pair in pairs}
        expected["logits"] = "[batch_size,sequence_length,6]"
        expected |= {f"present.{pair}": f"[{batch}total_sequence_length,8]" for pair in pairs}
        assert list(shapes.items()) == list(expected.items())

    def test_keys_and_values_stay_in_their_order(self) -> None:
        model = self.made()
        name_interface(model)
        ends = [node for node in model.graph if node.op_type == "Concat"]
        assert [(node.inputs[0].name, node.outputs[0].name) for node in ends if node.inputs[0] is not None] == [
            (f"past_key_values.{i}.{kind}", f"present.{i}.{kind}") for i in (0, 1) for kind in ("key", "value")
        ]

    def test_logits_of_one_position_keep_it(self) -> None:
        model = self.made(length=1)
        name_interface(model)
        assert str(model.graph.outputs[0].shape) == "[batch_size,1,6]"

    def test_nodes_are_called_after_their_weights(self) -> None:
        model = self.made()
        name_interface(model)
        names = [node.name for node in model.graph]
        assert names == [
            "/model/embed_tokens/Gather",
            "/model/layers.0/mlp/up/FusedMatMul",
            "/model/layers.0/mlp/up/Relu",
            "/model/layers.0/mlp/up/Relu_2",
            "/model/layers.0/mlp/up/Mul",
            "/lm_head/FusedMatMul",
            "/lm_head/Concat",
            "/lm_head/Concat_2",
            "/lm_head/Concat_3",
            "/lm_head/Concat_4",
        ]
        between = list(model.graph)[:5]
        assert [node.outputs[0].name for node in between] == [f"{node.name}_output_0" for node in between]
        assert [node.outputs[0].shape for node in between] == [None] * 5


def bind(model: ir.Model, values: Mapping[str, np.ndarray]) -> None:
    """Give initializers without values theirs: those of a name, or rows of those."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            stored, first = value.meta.get(ROWS_OF, (name, 0))
            assert value.shape is not None and value.dtype is not None
            array = values[stored][first : first + value.shape[0]]  # pyright: ignore[reportOperatorIssue]
            assert (array.shape, ir.DataType.from_numpy(array.dtype)) == (tuple(value.shape), value.dtype), name
            value.const_value = ir.tensor(np.ascontiguousarray(array), name=name)


def stored(name: str, weight: QuantizedWeight) -> dict[str, np.ndarray]:
    base = name.removesuffix(".weight")
    zeros = {} if weight.zero_points is None else {f"{base}.zero_points": weight.zero_points}
    return {f"{base}.qweight": weight.packed, f"{base}.scales": weight.scales, **zeros}


class TestProjections:
    QKV, UP = "model.layers.0.self_attn.qkv_proj.weight", "model.layers.0.mlp.up.weight"
    WEIGHTS: ClassVar = {QKV: random(8, 4), UP: random(8, 4), "sizes": np.array([4, 1, 3]), "halves": np.array([4, 4])}

    def made(self) -> ir.Model:
        nodes: Sequence[Node] = [
            ("FusedMatMul", ["x", self.QKV], ["a"], {"transB": 1, "alpha": 0.5}),
            ("Split", ["a", "sizes"], ["q", "k", "v"], {"axis": -1}),
            ("FusedMatMul", ["x", self.UP], ["c"], {"transB": 1}),
            ("Split", ["c", "sizes"], ["d", "e", "f"], {"axis": -1}),
            ("FusedMatMul", ["x", self.QKV], ["g"], {"transB": 1}),
            ("Split", ["g", "halves"], ["h", "i"], {"axis": -1}),
        ]
        widths = {"q": 4, "k": 1, "v": 3, "d": 4, "e": 1, "f": 3, "h": 4, "i": 4}
        outputs: Typed = {name: (np.float32, ["b", "s", width]) for name, width in widths.items()}
        return graph(nodes, {"x": F3}, outputs, self.WEIGHTS)

    def test_each_gets_rows_of_what_is_stored(self) -> None:
        model, x = self.made(), random(2, 3, 4)
        first, *_ = model.graph
        first.name = "/model/layers.0/self_attn/qkv_proj/FusedMatMul"
        # The graph is otherwise one in which each matrix has one reader.
        *_, linear, split = model.graph
        model.graph.outputs.pop()
        model.graph.outputs.pop()
        model.graph.remove([split, linear], safe=True)
        expected = run(model, x=x)
        assert split_projections(model) == 1
        assert ops(model) == ["FusedMatMul"] * 4 + ["Split"]
        parts = [node for node in model.graph if node.inputs[1] is not None and ROWS_OF in node.inputs[1].meta]
        base = "model.layers.0.self_attn."
        assert [(node.inputs[1].name, node.inputs[1].meta[ROWS_OF]) for node in parts if node.inputs[1]] == [
            (f"{base}q_proj.weight", (self.QKV, 0)),
            (f"{base}k_proj.weight", (self.QKV, 4)),
            (f"{base}v_proj.weight", (self.QKV, 5)),
        ]
        assert [node.name for node in parts] == [f"/model/layers.0/self_attn/{c}_proj/FusedMatMul" for c in "qkv"]
        assert [attributes(node) for node in parts] == [{"transB": 1, "alpha": 0.5}] * 3
        assert self.QKV not in model.graph.initializers
        bind(model, self.WEIGHTS)
        require_close(run(model, x=x), expected)

    def test_other_splits_stay(self) -> None:
        model = self.made()
        first, second, *_ = model.graph
        for _ in range(3):
            model.graph.outputs.pop(0)
        model.graph.remove([second, first], safe=True)
        assert split_projections(model) == 0
        assert ops(model) == ["FusedMatMul", "Split"] * 2

    def test_quantized_ones_too(self) -> None:
        scheme = WeightScheme(4, 16, symmetric=False)
        weight = quantize_rtn(random(8, 48), scheme)
        arrays = stored(self.QKV, weight)
        attributes_ = {"K": 48, "N": 8, "bits": 4, "block_size": 16}
        nodes: Sequence[Node] = [
            ("MatMulNBits", ["x", *arrays], ["a"], attributes_),
            ("Split", ["a", "sizes"], ["q", "k", "v"], {"axis": -1}),
        ]
        outputs: Typed = {name: (np.float32, ["b", "s", width]) for name, width in (("q", 4), ("k", 1), ("v", 3))}
        weights = {**arrays, "sizes": np.array([4, 1, 3])}
        model, x = graph(nodes, {"x": (np.float32, ["b", "s", 48])}, outputs, weights), random(2, 3, 48)
        first, *_ = model.graph
        first.name = "qkv_proj"
        expected = run(model, x=x)
        assert split_projections(model) == 1
        assert [attributes(node)["N"] for node in model.graph] == [4, 1, 3]
        assert not arrays.keys() & model.graph.initializers.keys()
        bind(model, arrays)
        require_close(run(model, x=x), expected)


class TestQuantized:
    EMBED, DOWN = "model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"
    FLOAT: ClassVar = {EMBED: random(6, 40, seed=1), DOWN: random(40, 40, seed=2)}
    IDS = np.array([[0, 5], [3, 3]])

    def made(self, columns: int = 40) -> ir.Model:
        nodes: Sequence[Node] = [
            ("Gather", [self.EMBED, "ids"], ["h"], {}),
            ("FusedMatMul", ["h", self.DOWN], ["d"], {"transB": 1}),
            ("FusedMatMul", ["d", self.EMBED], ["y"], {"transB": 1}),
            ("Gather", ["table", "ids"], ["z"], {}),
        ]
        row: tuple[type, Sequence[int | str]] = (np.float32, ["b", "s", columns])
        weights = {
            self.EMBED: self.FLOAT[self.EMBED][:, :columns],
            self.DOWN: self.FLOAT[self.DOWN][:columns, :columns],
        }
        outputs: Typed = {"y": (np.float32, ["b", "s", 6]), "h": row, "z": (np.float32, ["b", "s"])}
        inputs: Typed = {"ids": (np.int64, ["b", "s"]), "table": (np.float32, [6])}
        model = graph(nodes, inputs, outputs, weights, {"d": row})
        for node, name in zip(
            model.graph, ("embed_tokens/Gather", "FusedMatMul", "head/FusedMatMul", "z"), strict=True
        ):
            node.name = f"/model/{name}"
        return model

    @pytest.mark.parametrize("columns", [32, 40])
    @pytest.mark.parametrize("provider", ["cpu", "cuda"])
    @pytest.mark.parametrize("symmetric", [True, False])
    @pytest.mark.parametrize("embedding", [True, False])
    def test_what_it_computes(self, columns: int, provider: str, symmetric: bool, embedding: bool) -> None:
        model, table = self.made(columns), random(6)
        schemes = {self.EMBED: WeightScheme(8, 16, symmetric), self.DOWN: WeightScheme(4, 16, symmetric)}
        weights = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}  # pyright: ignore[reportOptionalMemberAccess]
        rounded = {name: quantize_rtn(weight, schemes[name]) for name, weight in weights.items()}
        assert quantize_weights(model, schemes.__getitem__, 0, provider, embedding=embedding) == 2
        arrays = {key: array for name, weight in rounded.items() for key, array in stored(name, weight).items()}
        with_zeros = provider == "cuda" and symmetric
        if with_zeros:  # of 8 bits, all in the middle
            arrays["model.embed_tokens.zero_points"] = np.full((6, -(-columns // 16)), 128, np.uint8)
        expected_ops = ["Gather"]
        if embedding:
            expected_ops = ["Reshape", "GatherBlockQuantized"] + (["Slice"] if columns == 40 else [])
        assert ops(model) == [*expected_ops, "MatMulNBits", "MatMulNBits", "Gather"]
        unbound = {name for name, value in model.graph.initializers.items() if value.const_value is None}
        assert unbound == arrays.keys()
        floats = {name for name in model.graph.initializers if name.endswith(".weight")}
        assert floats == (set() if embedding else {self.EMBED})
        bind(model, arrays)
        found, hidden, plain = run(model, ids=self.IDS, table=table)
        back = {name: weight.dequantize() for name, weight in rounded.items()}
        looked_up = (back if embedding else weights)[self.EMBED][self.IDS]
        np.testing.assert_array_equal(hidden, looked_up)
        np.testing.assert_array_equal(plain, table[self.IDS])
        # Sums of 40 products of float32.
        require_close([found], [looked_up @ back[self.DOWN].T @ back[self.EMBED].T], 1e-4)

    @pytest.mark.parametrize("level", [0, 4])
    def test_what_it_looks_like(self, level: int) -> None:
        model = self.made()
        quantize_weights(model, lambda _: WeightScheme(4, 16, symmetric=True), level, "cpu")
        down, head = (node for node in model.graph if node.op_type == "MatMulNBits")
        common = {"K": 40, "bits": 4, "block_size": 16} | ({"accuracy_level": 4} if level else {})
        assert attributes(down) == {"N": 40, **common}
        assert attributes(head) == {"N": 6, **common}
        assert [node.name for node in model.graph] == [
            "/model/embed_tokens/Reshape",
            "/model/embed_tokens/GatherBlockQuantized",
            "/model/embed_tokens/Slice",
            "/model/MatMulNBits",
            "/model/head/MatMulNBits",
            "/model/z",
        ]
        reshape, lookup, *_ = model.graph
        assert attributes(lookup) == {"bits": 4, "block_size": 16, "gather_axis": 0, "quantize_axis": 1}
        assert str(reshape.outputs[0].shape) == "[6,24]"
        assert lookup.outputs[0].dtype == ir.DataType.FLOAT
        assert head.inputs[1] is reshape.inputs[0]
        assert [value.name for value in down.inputs if value is not None][1:] == [
            "model.layers.0.mlp.down_proj.qweight",
            "model.layers.0.mlp.down_proj.scales",
        ]


class TestPacked:
    """One layer of attention: 2 heads of 16, one of keys and values, 24 tokens at most."""

    HEADS, SIZE, WIDTH, VOCABULARY = 2, 16, 12, 7
    EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"

    def made(self, rotated: int = 1) -> ir.Model:
        qkv, out = (self.HEADS + 2) * self.SIZE, self.HEADS * self.SIZE
        attention = {"num_heads": self.HEADS, "kv_num_heads": 1, "scale": 0.25, "do_rotary": rotated}
        packed = ["qkv", "", "", "past_key_values.0.key", "past_key_values.0.value", "last", "total", "cos", "sin"]
        nodes: Sequence[Node] = [
            ("Gather", [self.EMBED, "input_ids"], ["h"], {}),
            ("FusedMatMul", ["h", "qkv_proj"], ["qkv"], {"transB": 1}),
            ("ReduceSum", ["attention_mask", "axis"], ["sum"], {"keepdims": 0}),
            ("Sub", ["sum", "one"], ["less"], {}),
            ("Cast", ["less"], ["last"], {"to": 6}),
            ("Shape", ["attention_mask"], ["width"], {"start": 1, "end": 2}),
            ("Squeeze", ["width", "zero"], ["scalar"], {}),
            ("Cast", ["scalar"], ["total"], {"to": 6}),
            ("GroupQueryAttention", packed, ["o", "present.0.key", "present.0.value"], attention),
            ("FusedMatMul", ["o", "o_proj"], ["hidden"], {"transB": 1}),
            ("Shape", ["input_ids"], ["shape"], {"start": 0, "end": 1}),
            ("FusedMatMul", ["hidden", self.HEAD], ["logits"], {"transB": 1}),
        ]
        angles = np.arange(24)[:, None] * 10.0 ** -np.arange(8)[None] / 3
        weights = {
            self.EMBED: random(self.VOCABULARY, self.WIDTH),
            "qkv_proj": random(qkv, self.WIDTH),
            "o_proj": random(self.WIDTH, out),
            self.HEAD: random(self.VOCABULARY, self.WIDTH, seed=3),
            "cos": np.cos(angles).astype(np.float32),
            "sin": np.sin(angles).astype(np.float32),
            "axis": np.array([1]),
            "one": np.array(1),
            "zero": np.array([0]),
        }
        cache = {
            name: (np.float32, ["batch_size", 1, length, self.SIZE])
            for names, length in (
                (("past_key_values.0.key", "past_key_values.0.value"), "past"),
                (("present.0.key", "present.0.value"), "total_length"),
            )
            for name in names
        }
        inputs: dict[str, Any] = {"input_ids": (np.int64, ["batch_size", "sequence_length"])}
        inputs["attention_mask"] = (np.int64, ["batch_size", "mask_length"])
        inputs |= {name: cache[name] for name in cache if name.startswith("past")}
        logits = (np.float32, ["batch_size", "sequence_length", self.VOCABULARY])
        outputs: dict[str, Any] = {"logits": logits, "shape": (np.int64, [1])}
        outputs |= {name: cache[name] for name in cache if name.startswith("present")}
        rows = (np.float32, ["batch_size", "sequence_length", out])
        within: dict[str, Any] = {"o": rows, "hidden": (np.float32, ["batch_size", "sequence_length", self.WIDTH])}
        return graph(nodes, inputs, outputs, weights, within)

    def empty(self, rows: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
        past = np.zeros((rows, 1, 0, self.SIZE), dtype)
        return {"past_key_values.0.key": past, "past_key_values.0.value": past}

    def texts(self) -> list[np.ndarray]:
        return [np.array([1, 4, 0, 6, 2]), np.array([5, 3])]

    def alone(self) -> list[list[np.ndarray]]:
        model = self.made()
        return [
            run(model, input_ids=text[None], attention_mask=np.ones((1, len(text)), np.int64), **self.empty(1))
            for text in self.texts()
        ]

    def together(self, model: ir.Model, dtype: type = np.float32) -> list[np.ndarray]:
        return run(
            model,
            input_ids=np.concatenate(self.texts())[None],
            pad_index=np.array([[0, 1, 2, 3, 4], [5, 6, 0, 0, 0]]),
            unpad_index=np.array([0, 1, 2, 3, 4, 5, 6]),
            logits_index=np.array([6, 0, 4]),
            query_seqlens=np.array([5, 2], np.int32),
            seqlens_k=np.array([4, 1], np.int32),
            total_length=np.array([5]),
            **self.empty(2, dtype),
        )

    def test_rows_of_a_packed_batch_are_what_they_are_alone(self) -> None:
        model = self.made()
        assert packable(model)
        assert pack_tokens(model) == 1
        names = [value.name for value in model.graph.inputs]
        assert names[:1] + names[3:] == [
            "input_ids",
            "pad_index",
            "unpad_index",
            "logits_index",
            "query_seqlens",
            "seqlens_k",
            "total_length",
        ]
        shapes = {value.name: str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)}
        assert shapes["input_ids"] == "[1,tokens]"
        assert shapes["logits"] == "[1,logits_rows,7]"
        # What the mask was for is gone, and a shape of something else is not.
        assert ops(model) == [
            *("Gather", "FusedMatMul", "Squeeze", "Cast", "Squeeze", "Gather", "GroupQueryAttention", "Reshape"),
            *("Gather", "FusedMatMul", "Shape", "Gather", "FusedMatMul"),
        ]
        assert [node.name for node in model.graph if "n8" in (node.name or "")] == [
            *("n8/flat", "n8/rows", "n8", "n8/joined", "n8/tokens")
        ]
        first, second = self.alone()
        logits, batch, keys, values = self.together(model)
        require_close([logits[0]], [np.stack([second[0][0, 1], first[0][0, 0], first[0][0, 4]])])
        assert batch.tolist() == [1]
        require_close([keys[0], values[0]], [first[2][0], first[3][0]])
        require_close([keys[1][:, :2], values[1][:, :2]], [second[2][0], second[3][0]])

    def test_names_and_types_of_what_is_new(self) -> None:
        model = self.made()
        pack_tokens(model)
        made = {node.name: node.outputs[0] for node in model.graph if node.name and "/" in node.name}
        assert {name: value.name for name, value in made.items()} == {
            **{name: f"{name}_output_0" for name in ("n8/flat", "n8/rows", "n8/joined", "n11/Gather")},
            "n8/tokens": "o",
        }
        assert {value.dtype for value in made.values()} == {ir.DataType.FLOAT}
        (attention,) = (node for node in model.graph if node.op_type == "GroupQueryAttention")
        assert attention.outputs[0].name == "n8_rows"
        assert [output.dtype for output in attention.outputs] == [ir.DataType.FLOAT] * 3
        assert len(attention.inputs) == 17
        assert [value is None for value in attention.inputs].count(True) == 9

    def test_other_attention_is_not_packable(self) -> None:
        assert not packable(self.made(rotated=0))
        assert not packable(graph([("Relu", ["x"], ["y"], {})], {"x": F3}, {"y": F3}, {}))
        model = self.made()
        (attention,) = (node for node in model.graph if node.op_type == "GroupQueryAttention")
        attention.replace_input_with(1, attention.inputs[0])
        assert not packable(model)
        attention.replace_input_with(1, None)
        assert packable(model)
        del attention.attributes["do_rotary"]
        assert not packable(model)

    def test_an_int8_cache_is_close(self) -> None:
        first, second = self.alone()
        keys, values = (np.abs(np.concatenate([first[i][0], second[i][0]], 1)).max(1) for i in (2, 3))
        model = self.made()
        pack_tokens(model)
        assert quantize_cache(model, [cache_scales(keys, values, 16)]) == 1
        (attention,) = (node for node in model.graph if node.op_type == "GroupQueryAttention")
        wanted = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        assert wanted.items() <= attributes(attention).items()
        eight = [v.name for v in (*model.graph.inputs, *model.graph.outputs) if v.dtype == ir.DataType.INT8]
        assert eight == [
            *("past_key_values.0.key", "past_key_values.0.value", "present.0.key", "present.0.value"),
        ]
        logits, _, _, kept = self.together(model, np.int8)
        expected = np.stack([second[0][0, 1], first[0][0, 0], first[0][0, 4]])
        # Steps of 1.2 / 127 of the largest value, through logits of this size.
        assert 0 < np.abs(logits[0] - expected).max() < 0.05 * np.abs(expected).max()
        scales = cache_scales(keys, values, 16)[1]
        # Half a step of rounding.
        np.testing.assert_allclose(kept[0] * scales[:, None], first[3][0], atol=float(scales.max()) / 2 * 1.001)


def test_scales_of_a_cache() -> None:
    keys = np.array([[1.0, 5.0, 3.0, 2.0, 9.0, 0.0]], np.float32)
    scaled, plain = cache_scales(keys, keys[:, ::-1], 4)
    # Channels 0 and 2, and 1 and 3, turn into each other; 4 and 5 do not.
    unit = 1.2 / 127
    np.testing.assert_allclose(scaled, np.array([[3, 5, 3, 5, 9, 1e-8 / unit]]) * unit, rtol=1e-6)
    np.testing.assert_allclose(plain, np.array([[1e-8 / unit, 9, 2, 3, 5, 1]]) * unit, rtol=1e-6)
    assert keys.tolist() == [[1.0, 5.0, 3.0, 2.0, 9.0, 0.0]]
    assert scaled.dtype == plain.dtype == np.float32


def test_a_constant_is_made_once() -> None:
    model = graph([("Relu", ["x"], ["y"], {})], {"x": F3}, {"y": F3}, {})
    first = constant(model, "three", np.array([3], np.int64))
    assert constant(model, "three", np.array([3], np.int64)) is first
    assert (str(first.shape), first.dtype) == ("[1]", ir.DataType.INT64)
    found = constant_value(first)
    assert found is not None and found.tolist() == [3]
    assert constant_value(model.graph.inputs[0]) is None
    assert constant_value(None) is None


def test_tidying_leaves_what_is_needed() -> None:
    nodes: Sequence[Node] = [
        ("Identity", ["x"], ["a"], {}),
        ("Constant", [], ["one"], {"value": numpy_helper.from_array(np.array(1.0, np.float32))}),
        ("Add", ["a", "one"], ["c"], {}),
        ("Add", ["a", "one"], ["d"], {}),
        ("Relu", ["a"], ["dead"], {}),
        ("Mul", ["c", "d"], ["y"], {}),
    ]
    model, x = graph(nodes, {"x": F3}, {"y": F3}, {}), random(2, 3, 4)
    model.graph.doc_string = "of the exporter"
    expected = run(model, x=x)
    assert tidy(model) == 4
    assert ops(model) == ["Add", "Mul"]
    assert list(model.graph.opset_imports) == [""]
    assert not model.graph.doc_string
    require_close(run(model, x=x), expected, 0)


def test_conditions_are_checked_around_a_pass() -> None:
    model = graph([("Relu", ["x"], ["y"], {})], {"x": F3}, {"y": F3}, {})
    seen: list[str] = []

    def note(name: str, problem: str | None = None) -> Any:
        return lambda _: (seen.append(name), problem)[1]

    whole = Rewrite(lambda _: seen.append("run") or 1, name="whole", needs=[note("need")], leaves=[note("leave")])
    run_passes(model, [whole])
    assert seen == ["need", "run", "leave"]
    assert str(whole) == "whole"
    assert str(Rewrite(tidy)) == "tidy"
    assert whole.call(model).modified
    assert not Rewrite(lambda _: 0, name="none").call(model).modified
    with pytest.raises(PassError, match=r"early runs too early: first; second"):
        run_passes(model, [Rewrite(tidy, name="early", needs=[note("", "first"), note(""), note("", "second")])])
    with pytest.raises(PassError, match=r"late is not complete: much is left"):
        run_passes(model, [whole, Rewrite(tidy, name="late", leaves=[note("", "much is left")])])
