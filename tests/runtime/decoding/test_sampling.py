from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phi3_onnx.configs import UsageError
from phi3_onnx.runtime.decoding.sampling import (
    Sampler,
    Sampling,
    _typical,
    discourage,
    distribution,
    log_softmax,
    penalize,
    token_logprobs,
)

VOCABULARY = 97


@pytest.fixture
def logits():
    return (np.random.default_rng(5).standard_normal(VOCABULARY) * 3).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, 500])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("typical_p", [0.1, 0.6, 1.0])
def test_the_distribution_is_that_of_transformers(logits, temperature, top_k, top_p, min_p, typical_p):
    import torch
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
    )

    scores = torch.from_numpy(logits)[None].double()
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    warpers += [TypicalLogitsWarper(typical_p)] if typical_p < 1 else []
    for warper in warpers:
        scores = warper(None, scores)
    expected = scores.softmax(-1)[0].numpy()

    tokens, probabilities = distribution(logits, Sampling(temperature, top_k, top_p, min_p=min_p, typical_p=typical_p))
    actual = np.zeros(VOCABULARY)
    actual[tokens] = probabilities
    # Both compute in float64 from float32 logits; only the order of the sums differs.
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_the_repetition_penalty_is_that_of_transformers(logits):
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    seen = [3, 5, 5, 90]
    processor: Any = RepetitionPenaltyLogitsProcessor(1.3)
    expected = processor(torch.tensor([seen]), torch.from_numpy(logits.copy())[None])
    before = logits.copy()
    # One float32 division or multiplication on either side.
    np.testing.assert_allclose(penalize(logits, seen, 1.3), expected[0].numpy(), rtol=1e-6)
    np.testing.assert_array_equal(logits, before)


def test_presence_and_frequency_penalties(logits):
    expected = logits.copy()
    expected[3] -= 0.5 + 2 * 0.25
    expected[90] -= 0.5 + 0.25
    before = logits.copy()
    # One float32 subtraction on either side.
    np.testing.assert_allclose(discourage(logits, [3, 90, 3], 0.5, 0.25), expected, rtol=1e-6)
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(discourage(logits, [], 0.5, 0.25), logits)


def test_penalties_count_the_answer_alone():
    level = np.array([2, 1.9, 0], dtype=np.float32)
    for sampling in (Sampling(0, presence_penalty=0.5), Sampling(0, frequency_penalty=0.5)):
        sampler = Sampler(sampling)
        assert sampler.pick(level, prompt=[0, 0]) == 0
        assert sampler.pick(level, prompt=[1], answer=[0]) == 1
    assert Sampler(Sampling(temperature=0, presence_penalty=-1)).pick(level, answer=[1]) == 1


def test_a_bias_comes_before_all_else(logits):
    assert Sampler(Sampling(temperature=0, logit_bias={7: 100})).pick(logits) == 7
    first, second = np.argsort(-logits)[:2]
    assert Sampler(Sampling(temperature=0, logit_bias={int(first): -100})).pick(logits) == second
    before = logits.copy()
    only = Sampler(Sampling(temperature=1, top_k=2, logit_bias=((4, 90.0), (5, 90.0))), 3)
    assert {only.pick(logits) for _ in range(200)} == {4, 5}
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("given", [{"7": -1, 3: 2.5}, ((3, 2.5), (7, -1))])
def test_biases_are_pairs_in_order(given):
    sampling = Sampling(logit_bias=given)
    assert sampling.logit_bias == ((3, 2.5), (7, -1.0))
    assert sampling.changes_logits and "logit-bias of 2 tokens" in str(sampling)


@pytest.mark.parametrize("given", [{"a": 1}, {1.5: 1}, {True: 1}, {1: "x"}, {1: None}, [1, 2], 5, {"1": 1, 1: 2}])
def test_what_is_no_bias_is_refused(given):
    with pytest.raises(UsageError, match="logit_bias must be numbers by token id"):
        Sampling(logit_bias=given)


def test_greedy_takes_the_first_of_the_most_likely():
    tied = np.array([1, 4, 4, 0], dtype=np.float32)
    assert Sampler(Sampling(temperature=0)).pick(tied) == 1
    assert Sampler(Sampling(top_k=1)).pick(tied) == 1


def test_a_seed_gives_the_same_tokens_again(logits):
    def draw(seed):
        sampler = Sampler(Sampling(temperature=1.5), seed)
        return [sampler.pick(logits) for _ in range(50)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_draws_follow_the_distribution(logits):
    sampling = Sampling(temperature=1.0, top_k=4, top_p=1.0)
    tokens, probabilities = distribution(logits, sampling)
    sampler, count = Sampler(sampling, 0), 4000
    drawn = np.bincount([sampler.pick(logits) for _ in range(count)], minlength=VOCABULARY)[tokens] / count
    # Five standard deviations of a share of 0.5 in 4000 draws; the seed is fixed.
    np.testing.assert_allclose(drawn, probabilities, atol=5 * 0.5 / count**0.5)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1.0), st.integers(0, 20))
def test_a_draw_is_always_a_token_that_may_be_drawn(seed, top_p, top_k):
    values = np.random.default_rng(seed).standard_normal(20).astype(np.float32)
    sampling = Sampling(0.7, top_k, top_p)
    assert Sampler(sampling, seed).pick(values) in distribution(values, sampling)[0]


def test_log_probabilities(logits):
    import torch

    entry = token_logprobs(logits, token=11, top=3)
    expected = torch.from_numpy(logits).double().log_softmax(-1)
    values, tokens = expected.topk(3)
    assert entry.logprob == pytest.approx(float(expected[11]), abs=1e-12)
    assert [token for token, _ in entry.top] == tokens.tolist()
    assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-12)
    assert token_logprobs(logits, token=11, top=0).top == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or more"),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be above 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"min_p": 1.1}, "min_p must be 0 to 1"),
        ({"typical_p": 0.0}, "typical_p must be above 0"),
        ({"logit_bias": {3: 101}}, "logit_bias of token 3 must be -100 to 100, got 101"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias of token 3 must be -100 to 100"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Sampling(**values)
    with pytest.raises(UsageError, match="seed must be 0 or more"):
        Sampler(Sampling(), -1)


def test_top_p_ends_where_it_is_reached_exactly():
    # Four equal tokens: their sums are exact, and two of them have half.
    tokens, probabilities = distribution(np.zeros(4, np.float32), Sampling(1.0, top_p=0.5))
    np.testing.assert_array_equal(tokens, [0, 1])
    np.testing.assert_array_equal(probabilities, [0.5, 0.5])


def test_typical_p_ends_where_it_is_reached_exactly():
    # Entropy 1.75 bits; distances from it 0.75, 0.25, 1.25 and 1.25: the second token comes first, with a quarter.
    probabilities = np.array([0.5, 0.25, 0.125, 0.125])
    found = [_typical(probabilities, mass).tolist() for mass in (0.2, 0.25, 0.26, 0.75, 0.76)]
    assert found == [[1], [1], [0, 1], [0, 1], [0, 1, 2, 3]]


def test_log_probabilities_of_large_logits_are_finite():
    found = log_softmax(np.array([[1e4, 0.0], [-1e4, -1e4]], np.float32))
    np.testing.assert_allclose(found, [[0.0, -1e4], [-np.log(2), -np.log(2)]])


def test_logits_far_apart_have_a_distribution():
    _, probabilities = distribution(np.array([0.0, 2000.0], np.float32), Sampling(1.0, 0))
    np.testing.assert_array_equal(probabilities, [0.0, 1.0])


class Largest:
    """Draws the largest number that a generator draws."""

    def random(self):
        return np.nextafter(1.0, 0.0)


def test_a_draw_beyond_the_rounded_sum_is_the_last_token():
    sampler: Any = Sampler(Sampling(1.0), 0)
    sampler._random = Largest()
    logits = np.zeros(10, np.float32)  # ten times a tenth falls short of 1 by a rounding
    assert np.cumsum(distribution(logits, sampler.sampling)[1])[-1] <= Largest().random()
    assert sampler.pick(logits) == 9


@pytest.mark.parametrize("penalty", [0.5, 2.0])
def test_every_repetition_penalty_but_1_is_applied(penalty):
    logits = np.array([3.5, 2.0], np.float32)
    seen = [0] if penalty > 1 else [1]
    assert Sampler(Sampling(0.0, repetition_penalty=penalty)).pick(logits, seen) == 1
