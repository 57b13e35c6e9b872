"""The streaming metrics against plain float64 definitions of the same quantities."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phi3_onnx.evaluate.parity import metrics
from phi3_onnx.evaluate.parity.metrics import Comparison, Likelihood, Metrics

POSITIONS, VOCABULARY = 157, 61


def logits(seed: int, scale: float = 5.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=(POSITIONS, VOCABULARY)).astype(np.float32)


def tokens(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, POSITIONS)


def compare(reference: np.ndarray, package: np.ndarray, following: np.ndarray, chunk: int = 10_000) -> Metrics:
    comparison = Comparison()
    for start in range(0, len(reference), chunk):
        rows = slice(start, start + chunk)
        comparison.add(reference[rows], package[rows], following[rows])
    return comparison.result()


def distributions(values: np.ndarray) -> list[list[float]]:
    rows = []
    for row in values.astype(np.float64):
        weights = [math.exp(x - row.max()) for x in row]
        rows.append([weight / math.fsum(weights) for weight in weights])
    return rows


def test_every_figure_equals_its_definition() -> None:
    reference, package, following = logits(1), logits(1) + logits(2, 0.5), tokens(3)
    p, q = distributions(reference), distributions(package)
    kl = [math.fsum(a * math.log(a / b) for a, b in zip(*rows, strict=True)) for rows in zip(p, q, strict=True)]
    found = compare(reference, package, following)
    # Both sides are float64 sums of 61 terms of size one and below: they agree to some units of 1e-16 * 61.
    assert found.mean_kl == pytest.approx(math.fsum(kl) / POSITIONS, rel=1e-12)
    assert found.median_kl == pytest.approx(sorted(kl)[POSITIONS // 2], rel=1e-12)
    # 157 values: the 99th percentile lies 0.99 * 156 = 154.44 steps up the sorted list.
    low, high = sorted(kl)[154:156]
    assert found.p99_kl == pytest.approx(low + 0.44 * (high - low), rel=1e-12)
    assert found.top1_agreement == np.mean([max(a) == a[b.index(max(b))] for a, b in zip(p, q, strict=True)])
    assert found.max_abs_diff == max(
        abs(float(a) - float(b)) for a, b in zip(reference.ravel(), package.ravel(), strict=True)
    )
    for perplexity, rows in ((found.reference, p), (found.package, q)):
        nll = [-math.log(row[token]) for row, token in zip(rows, following, strict=True)]
        mean = math.fsum(nll) / POSITIONS
        variance = math.fsum((x - mean) ** 2 for x in nll) / (POSITIONS - 1)
        assert perplexity.mean_nll == pytest.approx(mean, rel=1e-12)
        assert perplexity.nll_standard_error == pytest.approx(math.sqrt(variance / POSITIONS), rel=1e-12)
        assert perplexity.value == pytest.approx(math.exp(mean), rel=1e-12)
        assert perplexity.standard_error == pytest.approx(math.exp(mean) * math.sqrt(variance / POSITIONS), rel=1e-12)
    assert found.perplexity_ratio == pytest.approx(found.package.value / found.reference.value, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(chunk=st.integers(1, POSITIONS), elements=st.integers(1, 5000))
def test_pieces_of_any_size_give_the_same(chunk: int, elements: int) -> None:
    whole = compare(logits(1), logits(2), tokens(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_ELEMENTS_AT_ONCE", elements)
        pieces = compare(logits(1), logits(2), tokens(3), chunk)
    # Only the order of additions within numpy's sums could differ, and it does not: rows are summed one by one.
    assert pieces == whole


def test_equal_logits_have_no_distance() -> None:
    found = compare(logits(1), logits(1), tokens(3))
    assert (found.max_abs_diff, found.mean_kl, found.p99_kl, found.top1_agreement) == (0, 0, 0, 1)
    assert found.perplexity_ratio == 1


def test_logits_shifted_by_a_constant_are_the_same_distribution() -> None:
    found = compare(logits(1), logits(1) + np.float32(16), tokens(3))
    assert found.max_abs_diff == pytest.approx(16, abs=1e-5)
    # Adding 16 rounds float32 logits to 2e-6 at worst; KL grows with the square of that.
    assert found.mean_kl < 1e-11


def test_a_small_difference_is_not_lost_in_rounding() -> None:
    base = logits(1).astype(np.float64)
    noise = np.random.default_rng(2).normal(size=base.shape) * 1e-5
    found = compare(base, base + noise, tokens(3))
    p = np.array(distributions(base))
    # To second order, KL is half the variance of the difference under the reference's distribution (about 5e-11).
    expected = 0.5 * ((p * noise**2).sum(axis=1) - (p * noise).sum(axis=1) ** 2).mean()
    # The third order is smaller by 1e-5.
    assert found.mean_kl == pytest.approx(expected, rel=1e-3)


def test_extreme_logits_stay_finite() -> None:
    reference = np.full((2, 4), -60000.0, dtype=np.float32)
    reference[:, 0] = 60000
    found = compare(reference, -reference, np.array([0, 0]))
    assert found.mean_kl == pytest.approx(120000 + math.log(3), rel=1e-12)
    assert found.package.value == math.inf
    assert found.perplexity_ratio == math.inf


def test_a_broken_logit_shows_in_every_distance() -> None:
    package = logits(1)
    package[40, 7] = np.nan
    found = compare(logits(1), package, tokens(3), chunk=30)
    assert math.isnan(found.max_abs_diff)
    assert math.isnan(found.mean_kl)
    assert math.isnan(found.perplexity_ratio)


def test_the_last_position_may_have_nothing_to_predict() -> None:
    found = compare(logits(1), logits(2), tokens(3)[:-1])
    assert (found.positions, found.reference.tokens) == (POSITIONS, POSITIONS - 1)


def test_a_single_token_has_a_perplexity_without_error_bar() -> None:
    found = compare(logits(1)[:1], logits(2)[:1], tokens(3)[:1])
    assert math.isfinite(found.reference.value)
    assert math.isnan(found.reference.standard_error)


@pytest.mark.parametrize("elements", [1, VOCABULARY * 3, VOCABULARY * 3 + 1, 1 << 20])
@pytest.mark.parametrize("following", [POSITIONS, POSITIONS - 5])
def test_a_text_by_itself_has_the_same_perplexity(
    elements: int, following: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_ELEMENTS_AT_ONCE", elements)
    found = Likelihood()
    found.add(logits(1)[:100], tokens(3)[:100])
    found.add(logits(1)[100:], tokens(3)[100:following])
    expected = [
        -math.log(row[token]) for row, token in zip(distributions(logits(1))[:following], tokens(3), strict=False)
    ]
    np.testing.assert_allclose(found.each(), expected, rtol=1e-12)
    assert found.result().tokens == following
    assert found.result().mean_nll == pytest.approx(math.fsum(expected) / following, rel=1e-12)


def test_no_text_has_no_perplexity() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Likelihood()
        assert found.each().shape == (0,)
        nothing = found.result()
        assert (nothing.tokens, math.isnan(nothing.mean_nll), math.isnan(nothing.value)) == (0, True, True)
        found.add(logits(1), tokens(3)[:1])
        assert (found.result().tokens, math.isnan(found.result().nll_standard_error)) == (1, True)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(157, 61\), \(157, 60\)"):
        Comparison().add(logits(1), logits(2)[:, 1:], tokens(3))
    with pytest.raises(ValueError, match="same positions"):
        Comparison().add(logits(1), logits(2), tokens(3)[:-2])
    with pytest.raises(ValueError, match="no logits"):
        Comparison().result()


def test_two_tokens_have_an_error_bar() -> None:
    found = compare(logits(1)[:2], logits(2)[:2], tokens(3)[:2])
    p = distributions(logits(1)[:2])
    first, second = (-math.log(row[token]) for row, token in zip(p, tokens(3)[:2], strict=True))
    assert found.reference.nll_standard_error == pytest.approx(abs(first - second) / 2, rel=1e-12)
