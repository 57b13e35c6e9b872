"""What a step costs by its tokens and by how much of the cache they look at, learnt from the steps themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from .costs import StepCosts
from .layout import RowRun

# How many cached tokens a token may look at in the time that its matrix products take, before anything is known: fewer
# than anywhere measured (880 with 135 M parameters, 2,200 at Phi-3-mini's width), so that a first piece is too small.
_LOOKS_A_TOKEN = 500
# Standard deviations, relative: of what was first taken for granted, of what a step changes in all and in each, of what
# one step takes, and the most that is ever unknown.
_FIRST = np.array([0.3, 0.3, 1.0])
_ALL_MOVE, _EACH_MOVES = 0.10, 0.02
_ONE_STEP = 0.05
_MOST_UNKNOWN = 1.0
# A step that something else disturbed counts as so many times what was expected at most.
_MOST_OFF = 3.0
_LEAST_LEFT = 0.5  # of what a thing cost before a step, whatever the step took


@dataclass(frozen=True)
class Work:
    """What a step does."""

    runs: int = 0
    """Of the graph: texts beyond LongRoPE's switch have one of their own."""
    tokens: int = 0
    looks: float = 0.0
    """Pairs of a token and one before it, or itself: what attention computes."""

    @classmethod
    def of_row(cls, start: int, tokens: int) -> "Work":
        """Return the work of so many tokens of one text, after those in the cache."""
        return cls(0, tokens, tokens * (start + (tokens + 1) / 2))

    @classmethod
    def of_run(cls, rows: Sequence[RowRun]) -> "Work":
        """Return the work of a run."""
        return sum((cls.of_row(row.start, len(row.tokens)) for row in rows), cls(1))

    def __add__(self, other: "Work") -> "Work":
        return Work(self.runs + other.runs, self.tokens + other.tokens, self.looks + other.looks)

    @property
    def amounts(self) -> np.ndarray:
        """What costs are multiplied by, float64 [3]."""
        return np.array([self.runs, self.tokens, self.looks], np.float64)


class PieceCosts:
    """Seconds of a step: what any run takes, what each token takes, and what each look takes.

    Attention makes a token late in a text cost several times one at the start. The three are followed by a Kalman
    filter (R. E. Kalman, 1960): all of them move together when the machine gets slower, each by itself a little.
    """

    def __init__(self, first: Mapping[int, float]) -> None:
        """Begin with measurements of short texts: seconds by the number of tokens, one at least."""
        line = StepCosts(first)
        token = (line.seconds(8) - line.seconds(2)) / 6
        fixed = max(line.seconds(2) - 2 * token, token / 8)
        self._costs = np.array([fixed, token, token / _LOOKS_A_TOKEN])
        self._unknown = np.diag((_FIRST * self._costs) ** 2)

    def note(self, work: Work, seconds: float) -> None:
        """Learn from a step."""
        before, what = self._costs, work.amounts
        expected = float(before @ what)
        unknown = self._unknown + np.outer(before, before) * _ALL_MOVE**2 + np.diag((before * _EACH_MOVES) ** 2)
        seen = unknown @ what
        gain = seen / (what @ seen + (_ONE_STEP * expected) ** 2)
        self._costs = np.maximum(before + gain * (min(seconds, _MOST_OFF * expected) - expected), _LEAST_LEFT * before)
        unknown -= np.outer(gain, seen)
        # What no step shows for long is not forgotten.
        shrink = np.minimum(1.0, _MOST_UNKNOWN * self._costs / np.sqrt(np.maximum(np.diag(unknown), 1e-30)))
        self._unknown = unknown * np.outer(shrink, shrink)

    def seconds(self, work: Work) -> float:
        """Return what a step takes, and a standard deviation of what is not known of it more."""
        what = work.amounts
        return float(self._costs @ what) + sqrt(max(float(what @ self._unknown @ what), 0.0))
