"""Faster arithmetic for calibration: close enough, and gone when its context is."""

import pytest
import torch
from phi3_onnx.quantize.precision import fast_layers, fast_products, has_fast_products


def test_a_gram_matrix_is_that_of_inputs_rounded_to_bfloat16() -> None:
    inputs = torch.randn(512, 96, generator=torch.Generator().manual_seed(0))
    inputs[:, 3] *= 300  # an outlier channel, as language models have them
    exact = inputs.T @ inputs
    with fast_products():
        gram = inputs.T @ inputs
    assert gram.dtype == torch.float32
    # Where oneDNN may round, it may also not: with AVX-512 BF16 and without AMX it computes this one in float32. Either
    # way, rounding of the sums alone is left: float32, over 512 tokens.
    rounded = inputs.bfloat16().float()
    allowed = (exact, rounded.T @ rounded) if has_fast_products() else (exact,)
    assert any(torch.allclose(gram, wanted, rtol=1e-4, atol=1e-2) for wanted in allowed)
    torch.testing.assert_close(gram, exact, rtol=0.05, atol=0.01 * float(exact.diagonal().median()) * 10)
    assert float(torch.linalg.eigvalsh(gram.double()).min()) > 0


def test_arithmetic_is_the_callers_again_afterwards() -> None:
    left, right = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(1))
    exact = left @ right
    with pytest.raises(RuntimeError, match="inside"), fast_layers(), fast_products():
        raise RuntimeError("inside")
    assert torch.equal(left @ right, exact)
    assert not torch.is_autocast_enabled("cpu")
