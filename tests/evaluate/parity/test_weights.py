"""Blocks of stored weights against the checkpoint's: rounding and AWQ pass, a wrong scale does not."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from phi3_onnx.configs import Manifest, WeightScheme, read_manifest, with_quantization
from phi3_onnx.configs.progress import silent
from phi3_onnx.configs.target import Method
from phi3_onnx.evaluate.parity.stored import StoredWeights
from phi3_onnx.evaluate.parity.weights import compare_weights
from phi3_onnx.export import Checkpoint, open_checkpoint
from phi3_onnx.quantize.rtn import quantize_rtn

Factory = Callable[..., Path]
Parts = tuple[StoredWeights, Manifest, Checkpoint]
TENSOR = "model.layers.0.mlp.down_proj.weight"


class Changed:
    """The stored weights of a package, with some tensors replaced."""

    def __init__(self, stored: StoredWeights, tensors: Mapping[str, np.ndarray]) -> None:
        self._stored, self._tensors = stored, tensors

    def read(self, name: str, rows: slice) -> np.ndarray:
        return self._tensors[name][rows] if name in self._tensors else self._stored.read(name, rows)


@pytest.fixture
def parts(tiny: Factory, tiny_package: Factory) -> Parts:
    package = tiny_package("plain", "cpu-int4-rtn")
    manifest = read_manifest(package)
    return StoredWeights(package, manifest), manifest, open_checkpoint(tiny("plain"))


def compare(parts: Parts, tensors: Mapping[str, np.ndarray], method: Method) -> tuple[str, ...]:
    stored, manifest, checkpoint = parts
    manifest = replace(manifest, target=with_quantization(manifest.target, method=method))
    changed = cast(Any, Changed(stored, tensors))
    return compare_weights(changed, manifest, checkpoint, progress=silent).differences


def scaled(parts: Parts, name: str, *, rows: bool) -> np.ndarray:
    """Return a tensor as AWQ leaves it: its columns, and its rows if so asked, multiplied before it is rounded."""
    _, manifest, checkpoint = parts
    random = np.random.default_rng(0)
    weight = checkpoint.read(name)
    weight = weight * np.exp(random.normal(scale=0.7, size=weight.shape[1])).astype(np.float32)
    if rows:
        weight *= np.exp(random.normal(scale=0.5, size=(len(weight), 1))).astype(np.float32)
    summary = manifest.tensors[name]
    assert summary.block_size
    scheme = WeightScheme(4, summary.block_size, bool(summary.symmetric))
    return quantize_rtn(weight, scheme, "float32", threads=1).dequantize()


@pytest.mark.parametrize(("tensor", "rows"), [(TENSOR, False), ("model.layers.1.mlp.gate_up_proj.weight", True)])
def test_scales_of_awq_are_no_difference_where_there_was_awq(parts: Parts, tensor: str, rows: bool) -> None:
    stored = {tensor: scaled(parts, tensor, rows=rows)}
    assert compare(parts, stored, "awq+gptq") == ()
    (difference,) = compare(parts, stored, "rtn")
    assert difference.startswith(f"{tensor}: ")


def test_one_wrong_scale_is_found_among_those_of_awq(parts: Parts) -> None:
    tensor = scaled(parts, TENSOR, rows=False)
    tensor[7, 32:64] *= 5
    (difference,) = compare(parts, {TENSOR: tensor}, "awq")
    assert difference.startswith(f"{TENSOR}: 1 of 256 blocks differ: row 7, columns 32 on: scale is")


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_lost_blocks_are_found(parts: Parts, value: float) -> None:
    stored, manifest, _ = parts
    tensor = stored.read(TENSOR, slice(None)).copy()
    block = manifest.tensors[TENSOR].block_size
    tensor[3, :block] = value
    (difference,) = compare(parts, {TENSOR: tensor}, "rtn")
    assert f"{TENSOR}: 1 of " in difference
    assert "row 3, columns 0 on are zero or not finite" in difference


def test_a_norm_of_another_size_is_found(tiny: Factory, tiny_package: Factory) -> None:
    package = tiny_package("plain")
    manifest = read_manifest(package)
    stored = StoredWeights(package, manifest)
    norm = {"model.norm.weight": stored.read("model.norm.weight", slice(None)) * np.float32(1.01)}
    changed = cast(Any, Changed(stored, norm))
    found = compare_weights(changed, manifest, open_checkpoint(tiny("plain")), progress=silent)
    assert len(found.differences) == 1
    assert found.differences[0].startswith("model.norm.weight: 1 of 1 blocks differ")
