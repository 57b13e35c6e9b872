from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from phi3_onnx.configs import ModelConfig, Quantization, UsageError, WeightScheme, parse_model_config
from phi3_onnx.configs.target import IoDtype, Method
from phi3_onnx.quantize.calibrate import LinearInput, QuantizedLayer
from phi3_onnx.quantize.decoder_layer import LINEARS, DecoderLayers
from phi3_onnx.quantize.method import layer_quantizer
from phi3_onnx.quantize.texts import own_texts
from torch import Tensor

METHODS = cast("tuple[Method, ...]", get_args(Method))


def tiny(kv_heads: int) -> ModelConfig:
    return parse_model_config(
        {
            "model_type": "phi3",
            "vocab_size": 64,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 64,
            "tie_word_embeddings": False,
        }
    )


class Layer:
    """A random decoder layer with a few strong channels, what its linear layers see, and its output."""

    def __init__(self, config: ModelConfig) -> None:
        generator = torch.Generator().manual_seed(0)
        self.layers = DecoderLayers(config)
        shapes = {name.removeprefix("model.layers.0."): shape for name, shape in config.tensor_shapes().items()}
        self.weights: dict[str, Tensor] = {}
        for name in self.layers.weight_names:
            sample = torch.randn(shapes[name], generator=generator)
            self.weights[name] = sample * shapes[name][-1] ** -0.5 if len(shapes[name]) == 2 else sample.exp()
        self.states = torch.randn(16, 24, config.hidden_size, generator=generator)
        self.inputs: dict[str, LinearInput] = {}
        self.output = self.run(self.weights, gather=True)

    def run(self, weights: dict[str, Tensor], *, gather: bool = False) -> Tensor:
        def see(name: str, inputs: Tensor) -> None:
            gram = inputs.T @ inputs / len(inputs)
            self.inputs[name] = LinearInput(gram, inputs.abs().mean(0), len(inputs))

        self.layers.set_weights(weights)
        return self.layers.run(self.states, self.layers.operators(self.states.shape[1]), see if gather else None)

    def error(self, quantized: QuantizedLayer) -> float:
        weights = {name: torch.from_numpy(matrix.dequantize()) for name, matrix in quantized.matrices.items()}
        weights |= {name: torch.from_numpy(norm) for name, norm in quantized.norms.items()}
        return float((self.run(weights) - self.output).square().mean())


def quantize(
    layer: Layer,
    config: ModelConfig,
    method: Method,
    dtype: IoDtype = "float32",
    **overrides: Any,
) -> QuantizedLayer:
    scheme = WeightScheme(4, 32, symmetric=False)
    quantization = Quantization(method, scheme, **overrides)
    return layer_quantizer(config, quantization, dtype)("model.layers.0.", layer.weights, layer.inputs)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_every_method_beats_rounding_on_the_layers_output(kv_heads: int) -> None:
    config = tiny(kv_heads)
    layer = Layer(config)
    errors = {method: layer.error(quantize(layer, config, method)) for method in METHODS}
    assert errors["imatrix"] < errors["rtn"]
    assert errors["awq"] < errors["imatrix"]
    assert errors["gptq"] < errors["rtn"]
    assert errors["awq+gptq"] < errors["awq"]


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scales_change_nothing_but_the_rounding(kv_heads: int, dtype: IoDtype) -> None:
    config = tiny(kv_heads)
    layer = Layer(config)
    scheme = WeightScheme(8, 16, symmetric=False)  # fine enough to see a scale that is missing on either side
    quantizer = layer_quantizer(config, Quantization("awq", scheme), dtype)
    quantized = quantizer("model.layers.0.", layer.weights, layer.inputs)
    ratios = [report.get("awq_ratio", 0.0) for report in quantized.reports.values()]
    assert max(ratios) > 0, "a layer with strong channels gets scales"
    power = float(layer.output.square().mean())
    # 8 bits lose about 1e-5 of the power; a forgotten scale of 2 in one channel of 48 would lose 1e-2.
    assert layer.error(quantized) < 2e-4 * power
    if dtype == "float16":
        for norm in quantized.norms.values():
            np.testing.assert_array_equal(norm, norm.astype(np.float16).astype(np.float32))


def test_reports_say_what_was_done() -> None:
    config = tiny(4)
    layer = Layer(config)
    reports = quantize(layer, config, "awq+gptq").reports
    assert set(reports) == {f"{name}.weight" for name in LINEARS}
    for report in reports.values():
        assert report["method"] == report["kept"] == "awq+gptq"
        assert 0 < report["error_ratio"] < 1
        assert 0 < report["relative_error"] < 0.3
        assert 0 <= report["awq_ratio"] < 1
        assert 0 < report["awq_gain"] <= 1
    assert quantize(layer, config, "rtn").reports["mlp.down_proj.weight"]["error_ratio"] == 1.0


def test_heads_that_share_a_value_head_are_scaled_together() -> None:
    config = tiny(2)
    layer = Layer(config)
    name = "self_attn.o_proj.weight"
    assert "awq_ratio" in quantize(layer, config, "awq").reports[name]


def test_each_matrix_has_its_own_scheme() -> None:
    config = tiny(4)
    layer = Layer(config)
    fine = WeightScheme(8, 16, symmetric=True)
    overrides = (("model.layers.0.mlp.down_proj.weight", fine),)
    matrices = quantize(layer, config, "gptq", overrides=overrides).matrices
    assert matrices["mlp.down_proj.weight"].scheme == fine
    assert matrices["self_attn.qkv_proj.weight"].scheme == WeightScheme(4, 32, symmetric=False)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    config = tiny(4)
    layer = Layer(config)
    for seen in layer.inputs.values():
        seen.gram[3] = 0
        seen.gram[:, 3] = 0
        seen.mean_abs[3] = 0
    for method in METHODS:
        quantized = quantize(layer, config, method, dtype="float16")
        for matrix in quantized.matrices.values():
            assert np.isfinite(matrix.dequantize()).all()
        for norm in quantized.norms.values():
            assert np.isfinite(norm).all()


def test_the_layers_weights_are_left_alone() -> None:
    config = tiny(4)
    layer = Layer(config)
    before = {name: weight.clone() for name, weight in layer.weights.items()}
    first = quantize(layer, config, "awq+gptq")
    assert all(torch.equal(before[name], weight) for name, weight in layer.weights.items())
    second = quantize(layer, config, "awq+gptq")
    for name, matrix in first.matrices.items():
        np.testing.assert_array_equal(matrix.packed, second.matrices[name].packed)


def test_the_shipped_text_is_enough_for_the_default_samples() -> None:
    texts = own_texts()
    assert len(texts) >= 4
    # 128 samples of 512 tokens, at the four characters per token that English takes.
    assert sum(map(len, texts)) > 0.9 * 128 * 512 * 4
    assert not any("\ufffd" in text for text in texts)


def test_schemes_are_checked_before_any_work() -> None:
    with pytest.raises(UsageError, match="block size"):
        WeightScheme(4, 48, symmetric=True)
