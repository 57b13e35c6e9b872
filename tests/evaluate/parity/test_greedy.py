"""Judging greedy answers by one pass of the reference."""

from collections.abc import Callable

import numpy as np
from phi3_onnx.evaluate.parity.greedy import Answer, judge


def logits_of(sequence: np.ndarray, wrong: dict[int, int] | None = None) -> np.ndarray:
    """Logits that rank each following token first, but for `wrong` positions, which prefer another by 0.25."""
    rows = np.zeros((len(sequence), 50), dtype=np.float32)
    rows[np.arange(len(sequence) - 1), sequence[1:]] = 1
    for position, token in (wrong or {}).items():
        rows[position, token] = 1.25
    return rows


def rows_of(logits: np.ndarray) -> Callable[[int, int], np.ndarray]:
    return lambda start, stop: logits[start:stop]


FIRST = Answer(np.array([3, 4, 5]), np.array([6, 7, 8, 9]))
SECOND = Answer(np.array([10]), np.array([11, 12, 13, 14]))


def test_answers_that_the_reference_would_have_given() -> None:
    agreement = judge([FIRST, SECOND], [rows_of(logits_of(a.sequence)) for a in (FIRST, SECOND)], str)
    assert (agreement.agreed, agreement.total, agreement.identical, agreement.answers) == (8, 8, 2, 2)
    assert agreement.share == 1
    assert str(agreement) == "8 of 8 tokens, 2 of 2 answers identical"


def test_the_first_difference_is_told_with_its_margin() -> None:
    # Position 0 predicts the second answer's first token, position 2 its third. The prompt's own tokens do not count.
    wrong = logits_of(SECOND.sequence, {2: 40, 3: 41})
    prompt = logits_of(FIRST.sequence, {0: 49, 1: 49})
    agreement = judge([FIRST, SECOND], [rows_of(prompt), rows_of(wrong)], lambda token: f"<{token}>")
    assert (agreement.agreed, agreement.identical) == (6, 1)
    assert agreement.share == 0.75
    assert agreement.first_difference == (
        "answer 2, token 3: '<13>' for the reference's '<40>', whose logit leads by 0.25"
    )


def test_no_answers_agree_trivially() -> None:
    assert judge([], [], str).share == 1
