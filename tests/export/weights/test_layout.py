"""The plan of a data file: what it says before there is a graph is what the graph then wants."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from phi3_onnx.configs import ModelConfig, UsageError, WeightScheme, find_target, read_manifest, targets
from phi3_onnx.export import export, open_checkpoint
from phi3_onnx.export.graph.build import build_graph
from phi3_onnx.export.graph.passes import PassError
from phi3_onnx.export.lint.check import find_problems
from phi3_onnx.export.weights.blocks import fit_blocks
from phi3_onnx.export.weights.layout import plan_layout
from phi3_onnx.runtime.engines.session import LogitsSession


def shape_of(folder: Path) -> ModelConfig:
    return open_checkpoint(folder).config


@pytest.mark.parametrize("kind", ["plain", "gqa", "tied", "longrope", "partial", "ragged"])
@pytest.mark.parametrize("target", targets())
def test_graph_and_layout_agree(target: str, kind: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = shape_of(tiny(kind))
    if target in ("dml-int4-awq", "web-int4") and kind == "ragged":
        with pytest.raises(UsageError, match=r"needs blocks that divide K, and none of .* divides the 200 columns"):
            fit_blocks(model, find_target(target))
        return
    fitted, _ = fit_blocks(model, find_target(target))
    graph = build_graph(model, fitted)
    graph.bind(plan_layout(model, fitted), tmp_path)
    assert not graph.unbound()
    assert find_problems(graph.model, fitted.provider) == []


def test_a_graph_of_other_weights_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model, target = shape_of(tiny("plain")), find_target("cpu-int4-rtn")
    assert target.quantization
    other = replace(target, quantization=replace(target.quantization, weights=WeightScheme(4, 64, True)))
    layout = plan_layout(model, target)
    with pytest.raises(PassError, match=r"differ in model\.layers\.0\.self_attn\.qkv_proj\.qweight"):
        build_graph(model, other).bind(layout, tmp_path)
    with pytest.raises(PassError, match=r"differ in 2 initializers, such as lm_head\.qweight"):
        build_graph(replace(model, tie_embeddings=True), target).bind(layout, tmp_path)


def test_nothing_overlaps_and_large_tensors_start_at_a_page(tiny: Callable[..., Path]) -> None:
    layout = plan_layout(replace(shape_of(tiny("plain")), vocab_size=32064), find_target("cpu-int4-rtn"))
    entries = list(layout.stored.values())
    for before, after in pairwise(entries):
        assert before.offset + before.num_bytes <= after.offset
    large = [entry for entry in entries if entry.num_bytes >= 1 << 20]
    assert large
    assert all(entry.offset % 4096 == 0 for entry in large)
    assert layout.num_bytes == entries[-1].offset + entries[-1].num_bytes


def test_every_matrix_is_quantized_and_nothing_else(tiny: Callable[..., Path]) -> None:
    model = shape_of(tiny("plain"))
    layout = plan_layout(model, find_target("cpu-int4-rtn"))
    assert set(layout.quantized) == {name for name, shape in model.tensor_shapes().items() if len(shape) == 2}


@pytest.mark.parametrize("target", ["cpu-fp32", "cuda-fp16"])
def test_float_weights_take_their_targets_dtype(target: str, tiny: Callable[..., Path]) -> None:
    model, item = shape_of(tiny("plain")), 4 if target == "cpu-fp32" else 2
    assert plan_layout(model, find_target(target)).weight_bytes == model.num_parameters * item


def test_files_hold_no_more_than_the_target_says(tiny: Callable[..., Path], tmp_path: Path) -> None:
    target = replace(find_target("web-int4"), file_bytes=70_000)
    config = shape_of(tiny("plain"))
    layout = plan_layout(config, target)
    assert len(layout.file_sizes) > 2
    assert max(layout.file_sizes) <= 70_000
    assert layout.num_bytes == sum(layout.file_sizes) == plan_layout(config, find_target("web-int4")).num_bytes
    for before, after in pairwise(layout.stored.values()):
        assert (before.file, before.offset + before.num_bytes) <= (after.file, after.offset)
    with pytest.raises(
        UsageError, match=r"embed_tokens\.weight has 65536 bytes, and a file of target .* at most 60000"
    ):
        plan_layout(config, replace(target, file_bytes=60_000))
    split = export(tiny("plain"), target, tmp_path / "split")
    whole = export(tiny("plain"), "web-int4", tmp_path / "whole")
    assert {f"model.onnx.data_{number}" for number in (1, 2)} <= read_manifest(split).files.keys()
    tokens = np.arange(5, 25)
    first, second = (next(LogitsSession(folder).logits(tokens))[1] for folder in (split, whole))
    np.testing.assert_array_equal(first, second)
