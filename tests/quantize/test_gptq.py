import numpy as np
import pytest
import torch
from phi3_onnx.configs import WeightScheme
from phi3_onnx.quantize.gptq import Order, gptq, inverse_factor
from phi3_onnx.quantize.rounding import column_importance, output_error, round_matrix
from torch import Tensor

ORDERS: tuple[Order, ...] = ("importance", "storage")
SCHEMES = [
    *(WeightScheme(4, block, symmetric) for block in (16, 128, 256) for symmetric in (True, False)),
    *(WeightScheme(8, 32, symmetric) for symmetric in (True, False)),
]


def random_inputs(columns: int, tokens: int = 600, seed: int = 0) -> Tensor:
    """Correlated inputs of very different sizes, as a trained model's are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    sizes = torch.exp(torch.randn(columns, generator=generator))
    return torch.randn(tokens, columns, generator=generator) @ (mixing + torch.eye(columns)) * sizes


def random_weight(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def gram_of(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs / len(inputs)


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    gram = gram_of(random_inputs(40))
    factor = inverse_factor(gram, 0.01).double()
    damped = gram.double() + 0.01 * gram.diagonal().mean() * torch.eye(40)
    assert torch.equal(factor, factor.triu())
    # Float32 keeps about seven digits of the factor, the condition number of the damped matrix takes up to three.
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(40, dtype=torch.float64), atol=1e-3, rtol=0)


def test_a_singular_gram_matrix_is_damped_until_it_can_be_factored() -> None:
    inputs = random_inputs(30, tokens=5)
    inputs[:, 7] = 0
    factor = inverse_factor(gram_of(inputs), 1e-12)
    assert torch.isfinite(factor).all()


def test_inputs_that_are_not_numbers_are_refused() -> None:
    gram = gram_of(random_inputs(8))
    gram[3, 3] = torch.nan
    with pytest.raises(ValueError, match="not positive definite"):
        inverse_factor(gram, 0.01)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("columns", [72, 320])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_output_error_is_never_above_that_of_rounding(scheme: WeightScheme, columns: int, order: Order) -> None:
    gram, weight = gram_of(random_inputs(columns)), random_weight(24, columns)
    quantized = gptq(weight, gram, scheme, "float32", order=order)
    for importance in (None, column_importance(gram)):
        rounded = round_matrix(weight, scheme, "float32", importance, "thorough")
        assert output_error(weight - quantized.dequantize(), gram) < output_error(weight - rounded.dequantize(), gram)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_uncorrelated_inputs_leave_nothing_to_correct(scheme: WeightScheme) -> None:
    gram = torch.diag(torch.linspace(0.5, 3, 96))
    weight = random_weight(8, 96)
    rounded = round_matrix(weight, scheme, "float32", column_importance(gram), "thorough")
    torch.testing.assert_close(gptq(weight, gram, scheme, "float32").dequantize(), rounded.dequantize(), rtol=0, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [40, 300])
def test_the_sweep_is_the_papers(symmetric: bool, columns: int) -> None:
    """One column after the other, each correction on its own, in float64, with the inverse itself."""
    scheme = WeightScheme(4, 32, symmetric)
    gram, weight = gram_of(random_inputs(columns)), random_weight(16, columns)
    importance = column_importance(gram)
    grid = round_matrix(weight, scheme, "float32", importance, "thorough")
    order = importance.argsort(descending=True, stable=True)
    damped = (gram + 0.01 * gram.diagonal().mean() * torch.eye(columns))[order][:, order].double()
    upper = torch.linalg.cholesky(damped.inverse(), upper=True)
    rest, expected = weight.double()[:, order], torch.empty(16, columns, dtype=torch.float64)
    for j, column in enumerate(order.tolist()):
        scale = grid.scales[:, column // 32].double()
        zero = torch.full_like(scale, 8) if grid.zeros is None else grid.zeros[:, column // 32].double()
        expected[:, column] = ((rest[:, j] / scale).round() + zero).clamp(0, 15) - zero
        error = (rest[:, j] - expected[:, column] * scale) / upper[j, j]
        rest[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    found = gptq(weight, gram, scheme, "float32")
    assert torch.equal(found.scales, grid.scales)
    # float32 turns over a tie now and then, and with it some of the columns that follow.
    assert float((found.steps != expected).float().mean()) < 0.02


@pytest.mark.parametrize("order", ORDERS)
def test_packs_what_it_computed_with(order: Order) -> None:
    scheme = WeightScheme(4, 32, symmetric=False)
    gram, weight = gram_of(random_inputs(72)), random_weight(10, 72)
    quantized = gptq(weight, gram, scheme, "float16", order=order)
    packed = quantized.pack()
    np.testing.assert_array_equal(packed.dequantize(), quantized.dequantize().numpy())
    np.testing.assert_array_equal(packed.scales, packed.scales.astype(np.float16).astype(np.float32))
    assert packed.codes().max() <= 15


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_order_of_inputs_that_are_all_alike_is_that_of_the_columns(symmetric: bool) -> None:
    # With exchangeable inputs "importance" has nothing to sort by, and both orders sweep alike over the same grids.
    scheme = WeightScheme(4, 128, symmetric)
    gram = torch.full((128, 128), 0.5) + 0.5 * torch.eye(128)
    weight = random_weight(6, 128)
    first, second = (gptq(weight, gram, scheme, "float32", order=order) for order in ORDERS)
    assert torch.equal(first.steps, second.steps)
    # Scales are fitted on tensors of other shapes, whose sums run in another order.
    torch.testing.assert_close(first.scales, second.scales, rtol=1e-6, atol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_rows_can_be_taken_a_few_at_a_time(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = WeightScheme(4, 32, symmetric=False)
    gram, weight = gram_of(random_inputs(72)), random_weight(20, 72)
    whole = gptq(weight, gram, scheme, "float32", order=order)
    monkeypatch.setattr("phi3_onnx.quantize.gptq._ROWS", 7)
    apart = gptq(weight, gram, scheme, "float32", order=order)
    # Products of other shapes sum in another order, which now and then turns over a tie.
    assert float((whole.steps != apart.steps).float().mean()) < 0.01
    torch.testing.assert_close(whole.scales, apart.scales, rtol=1e-2, atol=0)


def test_same_input_same_result() -> None:
    scheme = WeightScheme(4, 16, symmetric=True)
    gram, weight = gram_of(random_inputs(64)), random_weight(8, 64)
    results = [gptq(weight.clone(), gram.clone(), scheme, "float32") for _ in range(2)]
    assert torch.equal(results[0].steps, results[1].steps)
    assert torch.equal(weight, random_weight(8, 64)), "arguments are left alone"
    assert torch.equal(gram, gram_of(random_inputs(64)))


def test_columns_that_were_not_seen_keep_a_hundredth_of_the_mean() -> None:
    gram = torch.diag(torch.tensor([4.0, 0.0]))
    assert column_importance(gram).tolist() == pytest.approx([4.02, 0.02])
