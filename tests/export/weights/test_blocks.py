"""Blocks that divide K, for a provider that takes no others, and the norms that float16 is too small for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from phi3_onnx.configs import UsageError, WeightScheme, find_target
from phi3_onnx.configs.manifest import read_manifest
from phi3_onnx.export import export, open_checkpoint
from phi3_onnx.export.weights.blocks import fit_blocks
from phi3_onnx.export.weights.norms import wide_norms

DIRECTML = find_target("dml-int4-awq")


def test_a_matrix_gets_the_largest_block_that_divides_its_columns(tiny: Callable[..., Path]) -> None:
    config = replace(open_checkpoint(tiny("plain")).config, hidden_size=576, intermediate_size=1536)
    fitted, changed = fit_blocks(config, DIRECTML)
    assert fitted.quantization
    smaller = WeightScheme(4, 64, symmetric=False)
    # 576 columns, and 64 of the attention's output, whose heads stayed as they were.
    names = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj")
    assert changed == {f"model.layers.*.{name}.weight": smaller for name in names}
    assert fitted.quantization.scheme_for("model.layers.1.self_attn.qkv_proj.weight") == smaller
    assert fitted.quantization.scheme_for("model.layers.1.mlp.down_proj.weight").block_size == 128


def test_other_targets_stay_as_they_are(tiny: Callable[..., Path]) -> None:
    config, target = open_checkpoint(tiny("ragged")).config, find_target("cpu-int4-awq")
    assert fit_blocks(config, target) == (target, {})


def test_columns_that_no_block_divides_are_refused(tiny: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"the 200 columns of model\.layers\.0\.mlp\.down_proj\.weight"):
        fit_blocks(open_checkpoint(tiny("ragged")).config, DIRECTML)


def test_norms_are_wide_where_measured_or_unknown(tiny: Callable[..., Path]) -> None:
    config = open_checkpoint(tiny("plain")).config
    names = [name for name, shape in config.tensor_shapes().items() if len(shape) == 1]
    found = wide_norms(config, DIRECTML, {**dict.fromkeys(names[:-2], 16000.0), names[-2]: 17000.0})
    assert found is not None
    assert found.weights == (names[-2], names[-1])
    assert wide_norms(config, find_target("cuda-fp16"), {}) is None


@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_a_directml_package_says_what_was_done(tiny: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    assert DIRECTML.quantization
    target = replace(DIRECTML, quantization=replace(DIRECTML.quantization, method="rtn"))
    manifest = read_manifest(export(tiny(kind), target, tmp_path / "package"))
    assert "GatherBlockQuantized" not in manifest.ops and "SkipSimplifiedLayerNormalization" not in manifest.ops
    # Two layers of q, k, v, o, gate and up, down; and the head.
    assert manifest.ops["MatMulNBits"] == 2 * 6 + 1
    assert manifest.tensors["model.embed_tokens.weight"].bits == (16 if kind == "plain" else 8)
    assert manifest.norms and len(manifest.norms["float32"]) == 5
