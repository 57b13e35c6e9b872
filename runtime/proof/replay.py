"""The self-test replayed on an engine: whole prompts, a further piece of one, and one token at a time."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...configs import EngineError
from ..decoding.engine import Engine
from .self_test import Distance, Expectation, SelfTest, Text

WHOLE, PIECE, DECODING = "a whole prompt", "a further piece of a prompt", "single tokens"


@dataclass(frozen=True)
class Verdict:
    """How an engine did."""

    found: Distance
    allowed: Distance
    worst_in: str
    """How the text was run where the distance is greatest."""
    problem: str | None = None
    """Why there are no figures: the engine failed."""

    @property
    def passed(self) -> bool:
        """Whether both figures keep within what is allowed; those that are not finite do not."""
        within = self.found.mean <= self.allowed.mean and self.found.worst <= self.allowed.worst
        return self.problem is None and within

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        if not np.isfinite(self.found.worst):
            return f"logits are not finite, with {self.worst_in}"
        return (
            f"{self.found.mean:.3g} nats from the reference in the mean (at most {self.allowed.mean:.3g}), "
            f"{self.found.worst:.3g} at worst (at most {self.allowed.worst:.3g}), with {self.worst_in}"
        )


def replay(self_test: SelfTest, engine: Engine) -> Verdict:
    """Run the texts of a self-test on an engine, and hold its logits against the reference's."""
    found = list[tuple[float, str]]()
    try:
        for text in self_test.texts:
            found += [(expected.distance(logits), how) for expected, logits, how in _logits(text, engine)]
    except EngineError as error:
        nothing = Distance(float("inf"), float("inf"))
        return Verdict(nothing, self_test.allowed, WHOLE, str(error))
    worst, how = max(found, key=lambda entry: entry[0])
    return Verdict(Distance(statistics.fmean(value for value, _ in found), worst), self_test.allowed, how)


def _logits(text: Text, engine: Engine) -> Iterator[tuple[Expectation, np.ndarray, str]]:
    """Yield each expectation of a text with an engine's logits there, float32 [vocabulary], and how they were made."""
    tokens, expected = text.tokens, text.expected
    sequence = engine.open(len(tokens))
    try:
        sequence.append(tokens)
        yield expected[-1], sequence.logits(), WHOLE
    finally:
        sequence.close()
    sequence, done = engine.open(len(tokens)), 0
    try:
        for number, entry in enumerate(expected):
            piece = tokens[done : entry.position + 1]
            sequence.append(piece)
            done += len(piece)
            how = WHOLE if number == 0 else PIECE if len(piece) > 1 else DECODING
            yield entry, sequence.logits(), how
    finally:
        sequence.close()
