"""The self-test replayed on an engine: whole prompts, a further piece of one, and one token at a time."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...configs import EngineError
from ..decoding.engine import Engine
from .self_test import Distance, Expectation, SelfTest, Text, divergence

WHOLE, PIECE, DECODING = "a whole prompt", "a further piece of a prompt", "single tokens"
SCALE = 0.05
"""The most that the spread of its logits may differ from the spread there, as a share of it."""


@dataclass(frozen=True)
class Verdict:
    """How an engine did."""

    distance: Distance
    """From the reference."""
    allowed: Distance
    drift: Distance
    """From the package where it was verified."""
    allowed_drift: Distance
    scale: float
    """Slope of its log probabilities over those there; rounding leaves it at 1."""
    worst_in: str
    """How the text was run where the drift is greatest."""
    problem: str | None = None
    """Why there are no figures: the engine failed."""

    @property
    def passed(self) -> bool:
        """Whether all figures keep within what is allowed; those that are not finite do not."""
        same = self.drift.within(self.allowed_drift) and abs(self.scale - 1) <= SCALE
        return self.problem is None and same and self.distance.within(self.allowed)

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        if not math.isfinite(self.drift.worst):
            return f"logits are not finite, with {self.worst_in}"
        away = f"{self.drift.mean:.3g} nats from where it was verified (at most {self.allowed_drift.mean:g})"
        worst = f"{self.drift.worst:.3g} at worst (at most {self.allowed_drift.worst:g}), with {self.worst_in}"
        scale = f"logits {self.scale:.3g} times as far apart ({1 - SCALE:g} to {1 + SCALE:g})"
        return (
            f"{away}, {worst}; {scale}; {self.distance.mean:.3g} from the reference (at most {self.allowed.mean:.3g})"
        )


def replay(self_test: SelfTest, engine: Engine) -> Verdict:
    """Run the texts of a self-test on an engine, and hold its logits against what is expected."""
    try:
        answers = [answer for text in self_test.texts for answer in _answers(text, engine)]
    except EngineError as error:
        nothing = Distance(math.inf, math.inf)
        return Verdict(nothing, self_test.allowed, nothing, self_test.drift, math.nan, WHOLE, str(error))
    return judge(self_test, answers)


@dataclass(frozen=True)
class Answer:
    """What an engine gave where something is expected."""

    expected: Expectation
    found: np.ndarray
    """Log probabilities of its tokens, float64 [tokens]."""
    how: str
    """How the text was run."""


def judge(self_test: SelfTest, answers: Sequence[Answer]) -> Verdict:
    """Return how answers compare with what a self-test expects."""
    drifts = [divergence(answer.expected.measured, answer.found) for answer in answers]
    worst = max(range(len(answers)), key=drifts.__getitem__)
    return Verdict(
        distance([divergence(answer.expected.log_probabilities, answer.found) for answer in answers]),
        self_test.allowed,
        distance(drifts),
        self_test.drift,
        _scale(answers),
        answers[worst].how,
    )


def distance(values: Sequence[float]) -> Distance:
    """Return the mean and the largest of divergences."""
    return Distance(statistics.fmean(values), max(values))


def _scale(answers: Sequence[Answer]) -> float:
    """Return the slope of the found log probabilities over the measured ones, by least squares.

    What divides or multiplies all logits alike moves a flat distribution by little, but this by just as much; errors
    that come from rounding are as often up as down, and leave it.
    """
    products = squares = 0.0
    for answer in answers:
        measured = np.asarray(answer.expected.measured)
        apart = measured - measured.mean()
        products += float(apart @ answer.found)
        squares += float(apart @ apart)
    return products / squares if squares else 1.0


def _answers(text: Text, engine: Engine) -> Iterator[Answer]:
    """Yield what an engine gives at each position that something is expected of: the end first, from one run."""
    tokens, expected = text.tokens, text.expected
    sequence = engine.open(len(tokens))
    try:
        sequence.append(tokens)
        yield Answer(expected[-1], expected[-1].found(sequence.logits()), WHOLE)
    finally:
        sequence.close()
    sequence, done = engine.open(len(tokens)), 0
    try:
        for number, entry in enumerate(expected):
            piece = tokens[done : entry.position + 1]
            sequence.append(piece)
            done += len(piece)
            how = WHOLE if number == 0 else PIECE if len(piece) > 1 else DECODING
            yield Answer(entry, entry.found(sequence.logits()), how)
    finally:
        sequence.close()
