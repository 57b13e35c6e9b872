"""Packages of tiny models against transformers, run by plain ONNX Runtime with the cache split at awkward places."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import AutoModelForCausalLM

TinyPackage = Callable[..., Path]
Tiny = Callable[..., Path]

# Random weights give logits with a standard deviation of 3; float32 sums in another order differ by some 1e-5.
FLOAT32_TOLERANCE = 1e-4
# Half precision keeps 11 bits: 3 * 2^-11 an operation, over two layers and a head.
FLOAT16_TOLERANCE = 0.06


def reference_logits(checkpoint: Path, ids: np.ndarray) -> np.ndarray:
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.numpy()


def package_logits(package: Path, ids: np.ndarray, chunks: list[int]) -> np.ndarray:
    """Run `ids` [batch, length] through a package in chunks of these lengths, passing the cache on."""
    session = ort.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = {value.name: value for value in session.get_inputs()}
    past_names = [name for name in inputs if name.startswith("past_key_values")]
    dtype = np.float16 if "float16" in inputs[past_names[0]].type else np.float32
    _, heads, _, head_dim = inputs[past_names[0]].shape
    past = {name: np.zeros((len(ids), heads, 0, head_dim), dtype) for name in past_names}
    found, start = [], 0
    for length in chunks:
        stop = start + length
        feeds = {"input_ids": ids[:, start:stop], "attention_mask": np.ones((len(ids), stop), np.int64), **past}
        if "position_ids" in inputs:
            feeds["position_ids"] = np.tile(np.arange(start, stop), (len(ids), 1))
        logits, *present = session.run(None, feeds)
        found.append(np.asarray(logits, np.float32))
        past = dict(zip(past_names, present, strict=True))
        start = stop
    assert start == ids.shape[1]
    return np.concatenate(found, axis=1)


def random_ids(length: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(5, 400, (batch, length))


# Two of the partial kind: tables that the attention operator takes (24 columns), and that it does not (4).
WIDE_HEADS = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "partial_rotary_factor": 0.75}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("plain", {}),
        ("gqa", {}),
        ("partial", {}),
        ("partial", WIDE_HEADS),
        ("tied", {}),
        ("ragged", {}),
        ("window", {}),
        ("llama", {}),
        ("sharded", {}),
        ("plain", {"dtype": "bfloat16"}),
    ],
)
def test_float32_package_equals_transformers(
    tiny: Tiny, tiny_package: TinyPackage, kind: str, changes: dict[str, Any]
) -> None:
    ids = random_ids(100, batch=2)
    expected = reference_logits(tiny(kind, **changes), ids)
    package = tiny_package(kind, "cpu-fp32", **changes)
    # GroupQueryAttention takes several sequences in a first run and in steps of one token, chunks for one alone.
    for batch, chunks in ((2, [97, 1, 1, 1]), (1, [33, 1, 1, 40, 25])):
        found = package_logits(package, ids[:batch], chunks)
        assert np.abs(found - expected[:batch]).max() < FLOAT32_TOLERANCE


@pytest.mark.parametrize(
    ("kind", "changes", "length"),
    [
        ("plain", {}, 60),
        ("gqa", {}, 60),
        ("partial", {}, 60),
        ("partial", WIDE_HEADS, 60),
        ("window", {}, 60),
        ("longrope", {}, 4096),
        ("longrope", {}, 4097),
    ],
)
def test_directmls_graph_equals_transformers(
    tiny: Tiny, tmp_path: Path, kind: str, changes: dict[str, Any], length: int
) -> None:
    """Separate q, k and v, rotary nodes and position_ids, in float32 and on the CPU provider."""
    from phi3_onnx.configs import find_target
    from phi3_onnx.export import export

    directml = find_target("dml-int4-awq")
    target = replace(find_target("cpu-fp32"), attention=directml.attention, position_ids=directml.position_ids)
    package = export(tiny(kind, **changes), target, tmp_path / "package")
    ids = random_ids(length)
    expected = reference_logits(tiny(kind, **changes), ids)
    found = package_logits(package, ids, [length] if kind == "longrope" else [33, 1, length - 34])
    assert np.abs(found - expected).max() < FLOAT32_TOLERANCE


@pytest.mark.parametrize("width", [6, 5000])
def test_directmls_longrope_follows_positions_and_not_the_masks_width(tiny: Tiny, tmp_path: Path, width: int) -> None:
    """Where GenAI captures a graph, mask and cache have the width of the whole capacity from the first token on."""
    import onnxruntime
    from phi3_onnx.configs import find_target
    from phi3_onnx.export import export

    target = replace(find_target("cpu-fp32"), attention="separate", position_ids=True)
    package = export(tiny("longrope"), target, tmp_path / "package")
    session = onnxruntime.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])
    ids = random_ids(6)
    mask = np.zeros((1, width), np.int64)
    mask[:, :6] = 1
    shapes = {value.name: value.shape for value in session.get_inputs() if value.name.startswith("past")}
    past = {
        name: np.zeros((1, shape[1], width if width > 6 else 0, shape[3]), np.float32) for name, shape in shapes.items()
    }
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": np.arange(6)[None], **past}
    found = session.run(["logits"], feeds)[0]
    assert np.abs(found - reference_logits(tiny("longrope"), ids)).max() < FLOAT32_TOLERANCE


@pytest.mark.parametrize("length", [4095, 4096, 4097, 4160])
def test_longrope_switches_where_transformers_does(tiny: Tiny, tiny_package: TinyPackage, length: int) -> None:
    ids = random_ids(length)
    expected = reference_logits(tiny("longrope"), ids)
    found = package_logits(tiny_package("longrope"), ids, [length])
    assert np.abs(found - expected).max() < FLOAT32_TOLERANCE


def test_longrope_factors_follow_the_total_length_of_each_run(tiny: Tiny, tiny_package: TinyPackage) -> None:
    """Beyond the switch, chunks after a first one that crossed it go on with the long factors."""
    ids = random_ids(4110)
    expected = reference_logits(tiny("longrope"), ids)
    found = package_logits(tiny_package("longrope"), ids, [4100, 1, 9])
    assert np.abs(found - expected).max() < FLOAT32_TOLERANCE


def test_a_window_longer_than_a_chunk_is_kept_across_chunks(tiny: Tiny, tiny_package: TinyPackage) -> None:
    ids = random_ids(2100)
    changes = {"sliding_window": 2047}
    expected = reference_logits(tiny("window", **changes), ids)
    found = package_logits(tiny_package("window", "cpu-fp32", **changes), ids, [2040, 7, 1, 52])
    assert np.abs(found - expected).max() < FLOAT32_TOLERANCE
    without = package_logits(tiny_package("window", "cpu-fp32", sliding_window=None), ids, [2100])
    assert np.abs(without[:, 2047:] - expected[:, 2047:]).max() > 10 * FLOAT32_TOLERANCE


@pytest.mark.parametrize("kind", ["plain", "gqa", "tied", "ragged"])
def test_float16_package_is_close_on_the_cpu(tiny: Tiny, tiny_package: TinyPackage, kind: str) -> None:
    ids = random_ids(60)
    expected = reference_logits(tiny(kind), ids)
    found = package_logits(tiny_package(kind, "cuda-fp16"), ids, [40, 20])
    assert np.abs(found - expected).max() < FLOAT16_TOLERANCE


@pytest.mark.parametrize("target", ["cpu-int4-rtn", "cuda-int4-rtn"])
@pytest.mark.parametrize("kind", ["plain", "tied", "ragged"])
def test_quantized_package_computes_with_the_stored_weights(
    tiny: Tiny, tiny_package: TinyPackage, kind: str, target: str
) -> None:
    """The graph on packed weights equals transformers with the same weights, unpacked."""
    from phi3_onnx.configs import find_target
    from phi3_onnx.export import open_checkpoint
    from phi3_onnx.quantize.rtn import quantize_rtn

    checkpoint, chosen = open_checkpoint(tiny(kind)), find_target(target)
    assert chosen.quantization
    model: Any = AutoModelForCausalLM.from_pretrained(tiny(kind), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                scheme = chosen.quantization.scheme_for(name)
                packed = quantize_rtn(checkpoint.read(name), scheme, chosen.io_dtype)
                parameter.copy_(torch.from_numpy(packed.dequantize()))
        ids = random_ids(60)
        expected = model(torch.from_numpy(ids)).logits.numpy()
    found = package_logits(tiny_package(kind, target), ids, [40, 20])
    # accuracy_level 4 rounds activations to int8 in blocks: some 1% of a logit, most of it averaged out.
    tolerance = 0.5 if chosen.quantization.accuracy_level == 4 else FLOAT16_TOLERANCE
    assert np.abs(found - expected).max() < tolerance
