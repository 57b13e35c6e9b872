"""What a step costs by the number of its tokens, learnt from the steps themselves."""

from collections.abc import Mapping

import numpy as np

# Of what was learnt, from one step to the next: what a token costs changes with the lengths of the texts.
_REMEMBERED = 0.97
# Trust in the first measurements' share of a token: that many steps whose numbers of tokens differ by one from others'.
_TRUST = 4.0
# A step that something else disturbed counts as so many times what was expected at most.
_MOST_OFF = 3.0


class StepCosts:
    """A line through the seconds of steps over their tokens, of which late steps count most."""

    def __init__(self, first: Mapping[int, float]) -> None:
        """Begin with measurements: seconds by the number of tokens, one at least."""
        self._sums = np.zeros(5)  # of 1, tokens, seconds, tokens^2, tokens * seconds
        for tokens, seconds in first.items():
            self._add(tokens, seconds)
        tokens, seconds, variance, covariance = self._moments()
        slope = covariance / variance if variance > 0 else seconds / tokens / 4
        fixed = seconds - slope * tokens
        # What a token takes, in the time of a step without any; within what any machine may have.
        self._share = min(max(slope / fixed if fixed > 0 else 1.0, 1 / 64), 1.0)

    def note(self, tokens: int, seconds: float) -> None:
        """Learn from a step."""
        seconds = min(seconds, _MOST_OFF * self.seconds(tokens))
        self._sums *= _REMEMBERED
        self._add(tokens, seconds)

    def seconds(self, tokens: int) -> float:
        """Return what a step of so many tokens is expected to take."""
        mean_tokens, mean_seconds, variance, covariance = self._moments()
        prior = mean_seconds * self._share / (1 + self._share * mean_tokens)
        slope = (covariance + _TRUST * prior) / (variance + _TRUST)
        slope = min(max(slope, prior / 8), mean_seconds / mean_tokens)  # more tokens never take less, and none a time
        return mean_seconds + slope * (tokens - mean_tokens)

    def _add(self, tokens: int, seconds: float) -> None:
        self._sums += (1, tokens, seconds, tokens * tokens, tokens * seconds)

    def _moments(self) -> tuple[float, float, float, float]:
        """Return the means of tokens and seconds, and sums of their squared deviations and of products."""
        count, tokens, seconds, square, product = self._sums.tolist()
        mean = tokens / count
        return mean, seconds / count, square - mean * tokens, product - mean * seconds
