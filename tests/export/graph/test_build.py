"""The traced and rewritten graph: which operators result, under which names, from which architectures."""

import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from phi3_onnx.configs import ModelConfig, Target, WeightScheme, find_target, parse_model_config
from phi3_onnx.export.graph.build import build_graph
from phi3_onnx.export.graph.passes import (
    PassError,
    Rewrite,
    name_interface,
    norms_fused,
    run_passes,
    tidy,
    weights_folded,
)
from phi3_onnx.export.graph.trace import _hollow, _Traced, trace
from phi3_onnx.export.weights.rope import rope_tables, switches_factors, table_length

LAYERS = 2


TABLE: dict[str, Any] = {
    "model_type": "phi3",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "sliding_window": 31,
}


def config(**changes: Any) -> ModelConfig:
    return parse_model_config({**TABLE, **changes})


def names(values: Any) -> list[str]:
    return [value.name for value in values]


def node(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op_type)


def test_float_graph_has_the_fused_operators_and_nothing_left_over() -> None:
    graph = build_graph(config(), find_target("cpu-fp32"))
    assert graph.ops == {
        "FusedMatMul": 4 * LAYERS + 1,
        "SkipSimplifiedLayerNormalization": 2 * LAYERS,
        "Mul": 2 * LAYERS,
        "GroupQueryAttention": LAYERS,
        "Split": LAYERS,
        "Sigmoid": LAYERS,
        # Position of the last token, and the total length, from the attention mask.
        "Cast": 2,
        "ReduceSum": 1,
        "Sub": 1,
        "Shape": 1,
        "Squeeze": 1,
        "Gather": 1,
        "SimplifiedLayerNormalization": 1,
    }


def test_interface_is_the_runtimes_contract() -> None:
    model = build_graph(config(), find_target("cpu-fp32")).model
    past = [f"past_key_values.{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value")]
    assert names(model.graph.inputs) == ["input_ids", "attention_mask", *past]
    assert names(model.graph.outputs) == ["logits", *(name.replace("past_key_values", "present") for name in past)]
    assert str(model.graph.inputs[2].shape) == "[batch_size,2,past_sequence_length,32]"
    assert str(model.graph.outputs[0].shape) == "[batch_size,sequence_length,512]"
    assert str(model.graph.outputs[1].shape) == "[batch_size,2,total_sequence_length,32]"


def test_initializers_carry_the_checkpoints_names() -> None:
    shape = config()
    graph = build_graph(shape, find_target("cpu-fp32"))
    assert set(graph.unbound()) == {*shape.tensor_shapes(), "rope.cos", "rope.sin"}


def test_window_is_an_attribute_of_every_layer() -> None:
    for window, expected in ((31, 31), (None, -1), (4096, -1)):
        model = build_graph(config(sliding_window=window), find_target("cpu-fp32")).model
        found = [n.attributes["local_window_size"].as_int() for n in model.graph if n.op_type == "GroupQueryAttention"]
        assert found == [expected] * LAYERS


def test_quantized_graph_reads_no_float_matrix() -> None:
    graph = build_graph(config(), find_target("cpu-int4-rtn"))
    assert graph.ops["MatMulNBits"] == 4 * LAYERS + 1
    assert graph.ops["GatherBlockQuantized"] == 1
    assert "FusedMatMul" not in graph.ops
    assert "Gather" not in graph.ops
    matmul = node(graph.model, "MatMulNBits")
    assert {name: attribute.value for name, attribute in matmul.attributes.items()} == {
        "K": 128,
        "N": 256,
        "bits": 4,
        "block_size": 32,
        "accuracy_level": 4,
    }


def test_tied_embedding_is_stored_once() -> None:
    for target in ("cpu-fp32", "cpu-int4-rtn"):
        graph = build_graph(config(tie_word_embeddings=True), find_target(target))
        assert not [name for name in graph.unbound() if name.startswith("lm_head")]
    head = graph.model.graph.outputs[0].producer()
    assert head is not None
    assert head.inputs[1] is node(graph.model, "Reshape").inputs[0]


def test_overrides_choose_the_bits_of_each_tensor() -> None:
    target = find_target("cpu-int4-rtn")
    assert target.quantization
    overrides = (("*.down_proj.weight", WeightScheme(8, 64, False)), *target.quantization.overrides)
    graph = build_graph(config(), replace(target, quantization=replace(target.quantization, overrides=overrides)))
    matmuls = [node for node in graph.model.graph if node.op_type == "MatMulNBits"]
    bits = {weight.name: n.attributes["bits"].as_int() for n in matmuls if (weight := n.inputs[1])}
    assert bits["model.layers.1.mlp.down_proj.qweight"] == 8
    assert bits["model.layers.1.mlp.gate_up_proj.qweight"] == 4
    assert bits["lm_head.qweight"] == 8
    zero_points = [name for name in graph.unbound() if name.endswith("zero_points")]
    assert zero_points == [f"model.layers.{i}.mlp.down_proj.zero_points" for i in range(LAYERS)]


def test_separate_attention_has_rotary_nodes_and_position_ids() -> None:
    target = replace(find_target("cuda-int4-rtn"), attention="separate", position_ids=True)
    graph = build_graph(config(), target)
    assert graph.ops["RotaryEmbedding"] == 2 * LAYERS
    assert names(graph.model.graph.inputs)[:3] == ["input_ids", "attention_mask", "position_ids"]
    attention = node(graph.model, "GroupQueryAttention")
    assert attention.attributes["do_rotary"].as_int() == 0
    assert all(value is not None for value in attention.inputs[:3])


def test_rotary_tables_too_narrow_for_the_attention_operator_get_nodes_of_their_own() -> None:
    graph = build_graph(config(partial_rotary_factor=0.25), find_target("cpu-fp32"))  # 8 of 32, tables of 4 columns
    assert graph.ops["RotaryEmbedding"] == 2 * LAYERS
    assert "position_ids" not in names(graph.model.graph.inputs)
    assert node(graph.model, "RotaryEmbedding").attributes["rotary_embedding_dim"].as_int() == 8


def test_last_token_logits() -> None:
    target: Target = replace(find_target("cpu-int4-rtn"), last_token_logits=True)
    model = build_graph(config(), target).model
    assert str(model.graph.outputs[0].shape) == "[batch_size,1,512]"


def test_longrope_tables_hold_both_sets_of_factors() -> None:
    factors = {"type": "su", "short_factor": [1.0] * 16, "long_factor": [4.0] * 16}
    shape = config(rope_scaling=factors, max_position_embeddings=8192, original_max_position_embeddings=4096)
    assert switches_factors(shape)
    cos, sin = rope_tables(shape)
    assert cos.shape == sin.shape == (table_length(shape), 16) == (4096 + 8192, 16)
    # Position 4 under factors of 4 turns as far as position 1 under factors of 1.
    assert cos[1] == pytest.approx(cos[4096 + 4], abs=1e-6)
    assert "Slice" in build_graph(shape, find_target("cpu-fp32")).ops


def test_tracing_leaves_torchs_default_dtype_to_the_other_threads() -> None:
    # Threads that quantize weights may run beside it.
    seen: set[torch.dtype] = set()
    traced = threading.Event()

    def look() -> None:
        while not traced.wait(0.0005):
            seen.add(torch.get_default_dtype())

    with ThreadPoolExecutor(1) as other:
        other.submit(look)
        try:
            model = trace(config(), find_target("cuda-fp16"))
        finally:
            traced.set()
    assert seen == {torch.float32}
    assert model.graph.initializers["model.norm.weight"].dtype == ir.DataType.FLOAT16


def test_a_failing_pass_is_named_with_those_before_it() -> None:
    def broken(_: ir.Model) -> int:
        raise ValueError("no such node")

    model = build_graph(config(), find_target("cpu-fp32")).model
    with pytest.raises(PassError, match=r"'broken' pass after the following passes: \['fine'\].*: no such node"):
        run_passes(model, [Rewrite(lambda _: 0, name="fine"), Rewrite(broken)])


def test_a_pass_that_runs_too_early_says_so() -> None:
    model = trace(config(), find_target("cpu-int4-rtn"))
    with pytest.raises(PassError, match=r"name_interface runs too early: .*fold_weight_transposes comes first"):
        run_passes(model, [Rewrite(tidy), Rewrite(name_interface, needs=[weights_folded])])


def test_a_pass_that_leaves_something_undone_says_so() -> None:
    model = trace(config(), find_target("cpu-fp32"))
    with pytest.raises(PassError, match=r"nothing is not complete: .* norms stand apart"):
        run_passes(model, [Rewrite(tidy), Rewrite(lambda _: 0, name="nothing", leaves=[norms_fused])])


def test_tracing_and_calibrating_need_no_transformers() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import phi3_onnx.export.graph.trace, phi3_onnx.export.exporter, phi3_onnx.quantize.calibrate\n"
        "import phi3_onnx.evaluate.parity.reference, phi3_onnx.export.weights.rope as rope\n"
        "from phi3_onnx.configs import find_target, parse_model_config\n"
        f"config = parse_model_config({TABLE!r})\n"
        "rope.rope_tables(config)\n"
        "print(len(phi3_onnx.export.graph.trace.trace(config, find_target('cpu-int4-rtn')).graph))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) > 20


def test_nothing_of_torch_that_is_private_is_used() -> None:
    # Names with an underscore go without notice. Tracing needs none: its parameters are one number each, expanded.
    module = _Traced(config(), separate=False)
    _hollow(module, torch.float16)
    assert {parameter.untyped_storage().nbytes() for parameter in module.parameters()} == {2}
    for folder in ("export", "quantize", "evaluate"):
        for path in (Path(__file__).parents[3] / folder).glob("**/*.py"):
            assert not re.search(r"^\s*(from|import) torch\._", path.read_text(encoding="utf-8"), re.MULTILINE), path
