import pytest
import torch
from phi3_onnx.configs import WeightScheme
from phi3_onnx.quantize.awq import RATIOS, channel_scales, scale_gram, search_scaling
from phi3_onnx.quantize.rounding import round_matrix
from torch import Tensor

SCHEME = WeightScheme(4, 32, symmetric=False)


def plain(weight: Tensor, _gram: Tensor) -> Tensor:
    return round_matrix(weight, SCHEME, "float32").dequantize()


def salient_inputs(columns: int, seed: int, strength: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(strength * torch.randn(columns, generator=generator))
    return torch.randn(300, columns, generator=generator) * sizes + 0.1 * sizes


def literal_search(weights: list[Tensor], inputs: Tensor) -> tuple[float, float]:
    """AWQ as the paper says it: one forward pass of the scaled and rounded layers for each ratio."""
    mean_abs = inputs.abs().mean(0)
    errors: list[float] = []
    for ratio in RATIOS:
        scales = mean_abs.pow(ratio).clamp(min=1e-4)
        scales = scales / (scales.max() * scales.min()).sqrt()
        error = 0.0
        for weight in weights:
            outputs = (inputs / scales) @ plain(weight * scales, inputs).T
            error += float((outputs - inputs @ weight.T).double().square().sum(1).mean())
        errors.append(error)
    best = min(range(len(errors)), key=errors.__getitem__)
    return RATIOS[best], errors[best] / errors[0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.5])
def test_the_gram_matrix_picks_the_ratio_that_twenty_forward_passes_pick(seed: int, strength: float) -> None:
    inputs = salient_inputs(96, seed, strength)
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(rows, 96, generator=generator) for rows in (24, 40)]
    ratio, gain = literal_search(weights, inputs)
    found = search_scaling(weights, inputs.T @ inputs / len(inputs), inputs.abs().mean(0), plain)
    assert found.ratio == ratio
    # The same sums in another order, in float32.
    assert found.gain == pytest.approx(gain, rel=1e-3)


def test_salient_channels_are_scaled_up_and_plain_ones_left_alone() -> None:
    inputs = salient_inputs(64, 0, 1.5)
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(3))
    found = search_scaling([weight], inputs.T @ inputs / len(inputs), inputs.abs().mean(0), plain)
    assert found.ratio > 0
    assert found.gain < 0.9
    assert torch.equal(found.scale.argsort(), inputs.abs().mean(0).argsort())
    alike = torch.ones(64)
    found = search_scaling([weight], torch.eye(64), alike, plain)
    assert (found.ratio, found.gain) == (0.0, 1.0)
    assert torch.equal(found.scale, alike)


def test_scales_are_clamped_and_normalized() -> None:
    scale = channel_scales(torch.tensor([0.0, 1.0, 16.0]), 0.5)
    # 0, 1 and 4 before; the least becomes 1e-4, and then max * min is 1.
    torch.testing.assert_close(scale, torch.tensor([1e-4, 1.0, 4.0]) / (4e-4**0.5))
    assert torch.equal(channel_scales(torch.tensor([0.3, 7.0]), 0.0), torch.ones(2))


def test_scaled_inputs_have_the_scaled_gram_matrix() -> None:
    inputs, scale = salient_inputs(16, 0, 1.0), torch.linspace(0.5, 2, 16)
    scaled = inputs / scale
    expected = scaled.T @ scaled / len(inputs)
    torch.testing.assert_close(scale_gram(inputs.T @ inputs / len(inputs), scale), expected)


def test_ratios_are_the_papers() -> None:
    assert pytest.approx([0.05 * step for step in range(20)]) == list(RATIOS)
