from typing import Literal

import numpy as np
import pytest
import torch
from phi3_onnx.configs import WeightScheme
from phi3_onnx.quantize.grid import Effort, Grid, _candidates, fit_grid, steps
from phi3_onnx.quantize.rtn import quantize_rtn

SCHEMES = [
    WeightScheme(bits, block, symmetric) for bits in (4, 8) for block in (16, 128) for symmetric in (True, False)
]


def random_matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(5, (rows, columns)).astype(np.float32)


def squared_error(weight: np.ndarray, other: np.ndarray) -> float:
    return float(np.square(weight - other, dtype=np.float64).sum())


def plain_rounding(weight: np.ndarray, scheme: WeightScheme) -> np.ndarray:
    """Round as ONNX Runtime's own quantizer does: the largest weight of each block gets the outermost code."""
    blocks = weight.reshape(-1, scheme.block_size)
    top = (1 << scheme.bits) - 1
    if scheme.symmetric:
        largest = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(1)]
        scale, zero = largest / -((top + 1) // 2), np.full(len(blocks), (top + 1) // 2)
    else:
        low, high = blocks.min(1).clip(max=0), blocks.max(1).clip(min=0)
        scale = (high - low) / top
        zero = np.rint(-low / scale)
    codes = np.clip(np.rint(blocks / scale[:, None]) + zero[:, None], 0, top)
    return ((codes - zero[:, None]) * scale[:, None]).reshape(weight.shape)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_searched_scales_beat_the_full_range(scheme: WeightScheme) -> None:
    weight = random_matrix(32, 512)
    error = squared_error(weight, quantize_rtn(weight, scheme).dequantize())
    assert error < squared_error(weight, plain_rounding(weight, scheme))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_no_weight_is_further_than_half_a_step_from_its_value_unless_clipped(scheme: WeightScheme) -> None:
    weight = random_matrix(8, 512)
    quantized = quantize_rtn(weight, scheme)
    distance = np.abs(weight - quantized.dequantize()).reshape(8, -1, scheme.block_size)
    codes = quantized.codes()
    inner = (codes > 0) & (codes < (1 << scheme.bits) - 1)
    half = np.abs(quantized.scales)[:, :, None] / 2
    # Float32 rounds w / scale once and q * scale once.
    assert np.all((distance <= half * (1 + 1e-4))[inner])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_weights_of_one_sign_far_from_zero_lose_no_more_than_the_full_range(scheme: WeightScheme, sign: int) -> None:
    # Every grid has 0 on it, so the range begins there and not at the smallest weight.
    weight = (sign * np.random.default_rng(0).uniform(4, 5, (8, 256))).astype(np.float32)
    error = squared_error(weight, quantize_rtn(weight, scheme).dequantize())
    assert error <= squared_error(weight, plain_rounding(weight, scheme)) * (1 + 1e-6)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("columns", [72, 576])
def test_a_ragged_last_block_is_filled_with_zeros(scheme: WeightScheme, columns: int) -> None:
    weight = random_matrix(5, columns)
    quantized = quantize_rtn(weight, scheme)
    full = np.zeros((5, quantized.scales.shape[1] * scheme.block_size), np.float32)
    full[:, :columns] = weight
    np.testing.assert_array_equal(quantized.packed, quantize_rtn(full, scheme).packed)
    padding = quantized.codes().reshape(5, -1)[:, columns:]
    zeros = np.repeat(quantized.zeros(), scheme.block_size, axis=1)[:, columns:]
    np.testing.assert_array_equal(padding, zeros)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rows_can_be_quantized_apart_and_by_any_number_of_threads(
    scheme: WeightScheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = random_matrix(37, 576)
    whole = quantize_rtn(weight, scheme, threads=1)
    apart = [quantize_rtn(weight[i:j], scheme) for i, j in ((0, 1), (1, 20), (20, 37))]
    monkeypatch.setattr("phi3_onnx.quantize.rtn._CHUNK", 2000)
    for parts in (apart, [quantize_rtn(weight, scheme, threads=3)]):
        np.testing.assert_array_equal(whole.packed, np.concatenate([part.packed for part in parts]))
        np.testing.assert_array_equal(whole.scales, np.concatenate([part.scales for part in parts]))
        np.testing.assert_array_equal(whole.zeros(), np.concatenate([part.zeros() for part in parts]))


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_are_rounded_before_codes_are_chosen(symmetric: bool) -> None:
    scheme = WeightScheme(8, 32, symmetric)
    weight = random_matrix(16, 256) * 1e-3
    quantized = quantize_rtn(weight, scheme, "float16")
    np.testing.assert_array_equal(quantized.scales, quantized.scales.astype(np.float16).astype(np.float32))
    blocks = weight.reshape(16, 8, 32) / quantized.scales[:, :, None] + quantized.zeros()[:, :, None]
    # One code off would be 1; float32 puts ties at most 1e-4 apart at codes up to 255.
    assert np.abs(np.clip(blocks, 0, 255) - quantized.codes()).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zeros_and_tiny_weights_give_no_nan(scheme: WeightScheme) -> None:
    weight = np.zeros((4, 512), np.float32)
    weight[1] = 1e-30
    weight[2] = 1e-9  # its scale is nothing in float16
    weight[3, ::7] = 1.0
    for scale_dtype in ("float32", "float16"):
        back = quantize_rtn(weight, scheme, scale_dtype).dequantize()
        assert not back[0].any()
        assert np.isfinite(back).all()
        # A single positive level per block is met by the scale itself (float16 keeps 11 bits of it).
        np.testing.assert_allclose(back[3], weight[3], rtol=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_more_effort_loses_less(symmetric: bool) -> None:
    scheme = WeightScheme(4, 64, symmetric)
    blocks = torch.from_numpy(random_matrix(200, 64))
    importance = torch.rand(200, 64, generator=torch.Generator().manual_seed(0))
    high, low = blocks.amax(1), blocks.amin(1)
    plain = (  # plain rounding: the scale just reaches the largest weight
        Grid(torch.where(high > -low, high, low) / -8, None)
        if symmetric
        else Grid((high - low) / 15, (low * -15 / (high - low)).round())
    )
    errors = []
    efforts: tuple[Effort, ...] = ("fast", "thorough")
    for grid in (plain, *(fit_grid(blocks, scheme, "float32", importance, effort) for effort in efforts)):
        back = steps(blocks, grid, scheme) * grid.scales[:, None]
        errors.append(float((importance * (blocks - back).square()).sum()))
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_each_block_gets_its_best_candidate_with_the_zero_point_of_that(bits: Literal[4, 8], symmetric: bool) -> None:
    scheme = WeightScheme(bits, 32, symmetric)
    blocks = torch.from_numpy(random_matrix(60, 32))
    importance = torch.rand(60, 32, generator=torch.Generator().manual_seed(0))
    grid = fit_grid(blocks, scheme, "float32", importance, "thorough")
    scales, zeros = _candidates(blocks, scheme, "thorough", blind=False)
    same = 0
    for block in range(60):
        row, weight = blocks[block].numpy().astype(np.float64), importance[block].numpy().astype(np.float64)

        def refined(
            scale: float, zero: float, row: np.ndarray = row, weight: np.ndarray = weight
        ) -> tuple[float, float]:
            taken = np.clip(np.rint(row / scale), -zero, (1 << bits) - 1 - zero)
            along = (row * taken * weight).sum()
            return along / (taken * taken * weight).sum(), along**2 / (taken * taken * weight).sum()

        tried = [
            (*refined(float(scales[i, block]), float(zero)), float(zero))
            for i in range(len(scales))
            for zero in [(1 << (bits - 1)) if zeros is None else zeros[i, block]]
        ]
        scale, _, zero = max(tried, key=lambda one: one[1])
        for _ in range(3):
            scale, _ = refined(scale, zero)
        found = 1 << (bits - 1) if grid.zeros is None else float(grid.zeros[block])
        same += found == zero and abs(float(grid.scales[block]) / scale - 1) < 1e-4
    # Where two candidates save the same but for rounding, float32 takes the other one.
    assert same >= 57
