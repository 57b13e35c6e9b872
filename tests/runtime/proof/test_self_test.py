"""The file that holds a self-test, and its replay on engines that are right and wrong."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phi3_onnx.configs import EngineError, PackageError
from phi3_onnx.configs.manifest import SELF_TEST_NAME
from phi3_onnx.runtime.proof.replay import DECODING, PIECE, SCALE, WHOLE, Verdict, replay
from phi3_onnx.runtime.proof.self_test import Distance, SelfTest, Text, divergence, expect, read_self_test

VOCABULARY = 50
DRIFT = Distance(0.02, 0.1)


def rows(tokens: Sequence[int]) -> np.ndarray:
    """Return logits that depend on the last token and on how many there are."""
    return np.random.default_rng([tokens[-1], len(tokens)]).normal(0, 3, VOCABULARY).astype(np.float32)


class FormulaEngine:
    """An `Engine` whose logits are a formula, with a fault in some ways of running."""

    continuous, chooses, guides, prefill_chunk, name = True, False, False, 128, "formula 1.0"

    def __init__(self, *faults: str, change: Any = lambda logits: logits * 1.5) -> None:
        self.faults, self.change, self.opened = faults, change, 0

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
        return self.engine.change(found) if self.how in self.engine.faults else found

    def run_logits(self) -> np.ndarray:
        return self.logits()[None]

    def choose_token(self) -> int:
        return int(self.logits().argmax())

    def rewind(self, length: int) -> None:
        del self.tokens[length:]

    def close(self) -> None:
        pass


def made(away: float = 0.2) -> SelfTest:
    """Return a self-test of `rows`, whose reference is as far away as coarse weights are."""
    texts = []
    for start in (1, 7):
        tokens = tuple((start + 3 * i) % VOCABULARY for i in range(12))
        expected = []
        for position in (5, 9, 10, 11):
            own = rows(tokens[: position + 1])
            noise = np.random.default_rng(position).normal(0, away, VOCABULARY)
            expected.append(expect(own + noise, own, position))
        texts.append(Text(tokens, tuple(expected)))
    return SelfTest(tuple(texts), Distance(0.05, 0.1), DRIFT, "CPUExecutionProvider")


def test_an_engine_that_is_right_passes() -> None:
    verdict = replay(made(), FormulaEngine())
    assert verdict.passed
    assert verdict.drift.worst < 1e-6  # log probabilities are kept to 4 digits: the square of their error
    assert verdict.scale == pytest.approx(1, abs=1e-4)
    assert 1e-3 < verdict.distance.mean < 0.1  # a package is as far from its reference as its weights are coarse


@pytest.mark.parametrize("fault", [WHOLE, PIECE, DECODING])
def test_a_scaled_output_fails_wherever_it_is(fault: str) -> None:
    verdict = replay(made(), FormulaEngine(fault))
    assert not verdict.passed
    assert verdict.worst_in == fault
    assert "from the reference" in str(verdict)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_fails(value: float) -> None:
    verdict = replay(made(), FormulaEngine(DECODING, change=lambda logits: np.full_like(logits, value)))
    assert not verdict.passed
    assert verdict.worst_in == DECODING
    assert "not finite" in str(verdict)


def test_one_logit_that_is_not_finite_fails_though_nobody_expects_its_token() -> None:
    def spoiled(logits: np.ndarray) -> np.ndarray:
        return np.where(logits == logits.min(), np.nan, logits)

    assert not replay(made(), FormulaEngine(PIECE, change=spoiled)).passed


def test_an_engine_that_fails_is_no_traceback() -> None:
    def broken(logits: np.ndarray) -> np.ndarray:
        raise EngineError("the device was lost")

    verdict = replay(made(), FormulaEngine(PIECE, change=broken))
    assert not verdict.passed
    assert str(verdict) == "the device was lost"


def test_every_figure_has_a_limit() -> None:
    allowed = made().allowed
    assert (allowed.mean, allowed.worst) == (pytest.approx(0.12), pytest.approx(0.4))
    for distance, drift, scale, passed in (
        (allowed, DRIFT, 1 + 0.99 * SCALE, True),
        (Distance(allowed.mean + 0.01, 0), DRIFT, 1, False),
        (Distance(0, allowed.worst + 0.01), DRIFT, 1, False),
        (allowed, Distance(DRIFT.mean + 0.001, 0), 1, False),
        (allowed, Distance(0, DRIFT.worst + 0.001), 1, False),
        (allowed, DRIFT, 1.051, False),
        (allowed, DRIFT, 0.949, False),
        (allowed, DRIFT, float("nan"), False),
    ):
        assert Verdict(distance, allowed, drift, DRIFT, scale, WHOLE).passed == passed


@pytest.mark.parametrize("factor", [1.1, 0.9])
def test_a_factor_on_all_logits_is_seen_however_coarse_the_weights_are(factor: float) -> None:
    coarse = made(away=1.0)
    assert replay(coarse, FormulaEngine()).scale == pytest.approx(1, abs=0.001)
    scaled = replay(coarse, FormulaEngine(WHOLE, PIECE, DECODING, change=lambda logits: logits * factor))
    assert scaled.scale == pytest.approx(factor, abs=0.001)
    assert "times as far apart" in str(scaled)
    assert not scaled.passed


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
        (spoil("drift", None), "damaged"),
        (spoil("expected.worst", float("nan")), "no distance"),
        (spoil("texts.0.tokens", [1, 2]), "do not lead to the end"),
        (spoil("texts.0.tokens", [VOCABULARY]), "no token of 50"),
        (spoil("texts.0.tokens", [1] * 5000), "no list"),
        (spoil("texts.0.expected", []), "do not lead to the end"),
        (spoil("texts.0.expected.0.position", 10**9), "do not lead to the end"),
        (spoil("texts.0.expected.0.log_probabilities", [-1.0]), "tokens have 1 and"),
        (spoil("texts.0.expected.0.measured", [1.0] * 8), "no distance"),
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
    few = expect(np.array([0.0, 2.0]), np.array([1.0, 0.0]), 0)
    assert few.tokens == (1, 0)
    assert divergence(few.log_probabilities, few.found(np.array([0.0, 2.0]))) == pytest.approx(0, abs=1e-4)
    assert divergence(few.measured, few.found(np.array([0.0, 2.0]))) > 0.5


def test_tokens_of_reference_and_package_are_both_kept() -> None:
    reference, package = np.zeros(VOCABULARY), np.zeros(VOCABULARY)
    reference[:6], package[40:46] = 5, 5
    assert set(expect(reference, package, 0).tokens) == {*range(6), *range(40, 46)}
