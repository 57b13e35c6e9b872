"""What steps cost: learnt from a few measurements, and from the steps that come."""

import pytest
from phi3_onnx.runtime.engines.costs import StepCosts


def line(tokens: int) -> float:
    return 0.010 + 0.002 * tokens


def test_the_first_measurements_give_a_line() -> None:
    costs = StepCosts({tokens: line(tokens) for tokens in (1, 2, 3, 5, 7, 8)})
    for tokens in (1, 4, 16):
        assert costs.seconds(tokens) == pytest.approx(line(tokens), rel=0.15)


def test_steps_correct_measurements_that_were_wrong() -> None:
    costs = StepCosts({1: 0.1, 8: 0.1})
    for step in range(200):
        tokens = 1 + step % 5
        costs.note(tokens, line(tokens))
    for tokens in (1, 4, 12):
        assert costs.seconds(tokens) == pytest.approx(line(tokens), rel=0.1)


def test_steps_of_one_token_keep_what_is_known_of_more() -> None:
    costs = StepCosts({tokens: line(tokens) for tokens in (1, 2, 3, 5, 7, 8)})
    for _ in range(500):
        costs.note(1, 2 * line(1))  # a longer text
    assert costs.seconds(1) == pytest.approx(2 * line(1), rel=0.01)
    assert costs.seconds(8) == pytest.approx(2 * line(8), rel=0.15)


def test_one_disturbed_step_changes_little() -> None:
    costs = StepCosts({tokens: line(tokens) for tokens in (1, 2, 3, 5, 7, 8)})
    for _ in range(100):
        costs.note(1, line(1))
    costs.note(1, 5.0)
    assert costs.seconds(1) < 1.15 * line(1)


# What steps take with 4-bit weights of blocks of 32 on AVX-512, whose kernels run rows in pairs (135 M parameters).
PAIRS = {1: 1.0, 2: 1.13, 3: 1.51, 4: 1.60, 5: 2.0, 6: 2.13, 7: 2.64, 8: 2.64, 10: 3.13, 12: 3.61, 16: 4.67}


def test_rows_that_run_in_pairs_are_known_from_a_trial() -> None:
    costs = StepCosts({tokens: PAIRS[tokens] for tokens in (1, 2, 3, 5, 7, 8)})
    for tokens, seconds in PAIRS.items():
        assert costs.seconds(tokens) == pytest.approx(seconds, rel=0.1)
    assert costs.seconds(2) - costs.seconds(1) < 0.5 * (costs.seconds(3) - costs.seconds(2))


def test_rows_that_run_in_pairs_are_learnt_from_steps() -> None:
    costs = StepCosts({1: 1.0, 8: 2.8})  # a line says nothing of them
    for step in range(100):
        tokens = (1, 1, 1, 2, 3, 1, 4, 6)[step % 8]
        costs.note(tokens, PAIRS[tokens])
    for tokens in (1, 2, 3, 4, 5, 6):
        assert costs.seconds(tokens) == pytest.approx(PAIRS[tokens], rel=0.08)


def test_steps_of_one_token_alone_say_nothing_of_odd_numbers() -> None:
    costs = StepCosts({tokens: line(tokens) for tokens in (1, 2, 3, 5, 7, 8)})
    for _ in range(500):
        costs.note(1, line(1))
    assert costs.seconds(3) - costs.seconds(2) == pytest.approx(costs.seconds(4) - costs.seconds(3), rel=0.3)


@pytest.mark.parametrize("first", [{2: 0.01}, {1: 0.02, 8: 0.01}, {2: 0.01, 3: 0.5}])
def test_measurements_that_make_no_sense_still_give_costs_that_do(first: dict[int, float]) -> None:
    costs = StepCosts(first)
    assert 0 < costs.seconds(1) <= costs.seconds(2) < costs.seconds(100)
