"""The file that holds a self-test, and its replay on engines that are right and wrong."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phi3_onnx.configs import EngineError, PackageError
from phi3_onnx.runtime.proof.replay import DECODING, PIECE, WHOLE, Verdict, replay
from phi3_onnx.runtime.proof.self_test import SELF_TEST_NAME, Distance, SelfTest, Text, expect, read_self_test

VOCABULARY = 50


def rows(tokens: Sequence[int]) -> np.ndarray:
    """Return logits that depend on the last token and on how many there are."""
    return np.random.default_rng([tokens[-1], len(tokens)]).normal(0, 3, VOCABULARY).astype(np.float32)


class FormulaEngine:
    """An `Engine` whose logits are a formula, with a fault in one way of running."""

    continuous, chooses, guides, prefill_chunk, name = True, False, False, 128, "formula 1.0"

    def __init__(self, fault: str | None = None, change: Any = lambda logits: logits * 1.5) -> None:
        self.fault, self.change, self.opened = fault, change, 0

    def open(self, capacity: int, guided: object = None) -> "FormulaSequence":
        self.opened += 1
        return FormulaSequence(self, capacity)

    def close(self) -> None:
        pass


class FormulaSequence:
    waiting = False

    def __init__(self, engine: FormulaEngine, capacity: int) -> None:
        self.engine, self.capacity, self.tokens, self.how = engine, capacity, [], WHOLE

    def append(self, tokens: Sequence[int]) -> None:
        self.how = WHOLE if not self.tokens else PIECE if len(tokens) > 1 else DECODING
        self.tokens += tokens
        if len(self.tokens) > self.capacity:
            raise EngineError("full")

    def logits(self) -> np.ndarray:
        found = rows(self.tokens)
        return self.engine.change(found) if self.how == self.engine.fault else found

    def run_logits(self) -> np.ndarray:
        return self.logits()[None]

    def choose_token(self) -> int:
        return int(self.logits().argmax())

    def rewind(self, length: int) -> None:
        del self.tokens[length:]

    def close(self) -> None:
        pass


def made() -> SelfTest:
    texts = []
    for start in (1, 7):
        tokens = tuple((start + 3 * i) % VOCABULARY for i in range(12))
        texts.append(Text(tokens, tuple(expect(rows(tokens[: p + 1]), p) for p in (5, 9, 10, 11))))
    return SelfTest(tuple(texts), Distance(0.001, 0.002), "CPUExecutionProvider")


def test_an_engine_that_is_right_passes() -> None:
    verdict = replay(made(), FormulaEngine())
    assert verdict.passed
    assert verdict.found.worst < 1e-6  # log probabilities are kept to 4 digits: the square of their error


@pytest.mark.parametrize("fault", [WHOLE, PIECE, DECODING])
def test_a_scaled_output_fails_wherever_it_is(fault: str) -> None:
    verdict = replay(made(), FormulaEngine(fault))
    assert not verdict.passed
    assert verdict.worst_in == fault
    assert "nats from the reference" in str(verdict)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_fails(value: float) -> None:
    verdict = replay(made(), FormulaEngine(DECODING, lambda logits: np.full_like(logits, value)))
    assert not verdict.passed
    assert verdict.worst_in == DECODING
    assert "not finite" in str(verdict)


def test_one_logit_that_is_not_finite_fails_though_nobody_expects_its_token() -> None:
    def spoiled(logits: np.ndarray) -> np.ndarray:
        return np.where(logits == logits.min(), np.nan, logits)

    assert not replay(made(), FormulaEngine(PIECE, spoiled)).passed


def test_an_engine_that_fails_is_no_traceback() -> None:
    def broken(logits: np.ndarray) -> np.ndarray:
        raise EngineError("the device was lost")

    verdict = replay(made(), FormulaEngine(PIECE, broken))
    assert not verdict.passed
    assert str(verdict) == "the device was lost"


def test_the_figures_have_limits() -> None:
    allowed = made().allowed
    assert (allowed.mean, allowed.worst) == (pytest.approx(0.022), pytest.approx(0.106))
    for found, passed in ((Distance(0.02, 0.1), True), (Distance(0.03, 0.1), False), (Distance(0.02, 0.2), False)):
        assert Verdict(found, allowed, WHOLE).passed == passed


def test_the_file_holds_all_of_it(tmp_path: Path) -> None:
    assert read_self_test(tmp_path, VOCABULARY) is None
    (tmp_path / SELF_TEST_NAME).write_text(made().to_json(), encoding="utf-8")
    assert read_self_test(tmp_path, VOCABULARY) == made()


def spoil(name: str, value: object) -> str:
    table = json.loads(made().to_json())
    *path, last = name.split(".")
    inner = table
    for step in path:
        inner = inner[int(step) if step.isdecimal() else step]
    inner[last] = value
    return json.dumps(table)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "has no 'format'"),
        (spoil("format", 2), "upgrade phi3-onnx"),
        (spoil("texts", []), "no texts"),
        (spoil("texts", None), "damaged"),
        (spoil("expected.mean", "much"), "no distance"),
        (spoil("expected.worst", float("nan")), "no distance"),
        (spoil("texts.0.tokens", [1, 2]), "do not lead to the end"),
        (spoil("texts.0.tokens", [VOCABULARY]), "no token of 50"),
        (spoil("texts.0.tokens", [1] * 5000), "no list"),
        (spoil("texts.0.expected", []), "do not lead to the end"),
        (spoil("texts.0.expected.0.position", 10**9), "do not lead to the end"),
        (spoil("texts.0.expected.0.log_probabilities", [-1.0]), "8 tokens have 1 log"),
        (spoil("texts.0.expected.0.log_probabilities", None), "damaged"),
    ],
)
def test_a_damaged_file_is_one_line(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / SELF_TEST_NAME).write_text(content, encoding="utf-8")
    with pytest.raises(PackageError, match=said) as caught:
        read_self_test(tmp_path, VOCABULARY)
    assert "--no-self-test" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fewer_tokens_than_are_kept_are_all_of_them() -> None:
    few = replace(made().texts[0].expected[0], tokens=(3,), log_probabilities=(0.0,))
    assert few.distance(np.where(np.arange(VOCABULARY) == 3, 50.0, 0.0)) == pytest.approx(0, abs=1e-6)
