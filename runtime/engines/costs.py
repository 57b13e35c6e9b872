"""What a step costs by the number of its tokens, learnt from the steps themselves."""

from collections.abc import Mapping

import numpy as np

# Of what was learnt, from one step to the next: what a token costs changes with the lengths of the texts.
_REMEMBERED = 0.97
# Trust in the first measurements' share of a token: that many steps whose numbers of tokens differ by one from others'.
_TRUST = 4.0
# Trust in an odd number taking no longer than its place between the even ones.
_TRUST_ODD = 1.0
# A step that something else disturbed counts as so many times what was expected at most.
_MOST_OFF = 3.0


class StepCosts:
    """A line through the seconds of steps over their tokens, and what odd numbers take beyond it.

    Kernels of matrix products run rows in pairs: with 4-bit weights on AVX-512 three tokens take about as long as four.
    Late steps count most.
    """

    def __init__(self, first: Mapping[int, float]) -> None:
        """Begin with measurements: seconds by the number of tokens, one at least."""
        self._sums = np.zeros((4, 4))  # of the products of any two of 1, tokens, oddness and seconds
        for tokens, seconds in first.items():
            self._add(tokens, seconds)
        means, products = self._moments()
        slope = products[0, 2] / products[0, 0] if products[0, 0] > 0 else means[2] / means[0] / 4
        fixed = means[2] - slope * means[0]
        # What a token takes, in the time of a step without any; within what any machine may have.
        self._share = min(max(slope / fixed if fixed > 0 else 1.0, 1 / 64), 1.0)
        self._fit()

    def note(self, tokens: int, seconds: float) -> None:
        """Learn from a step."""
        seconds = min(seconds, _MOST_OFF * self.seconds(tokens))
        self._sums *= _REMEMBERED
        self._add(tokens, seconds)
        self._fit()

    def seconds(self, tokens: int) -> float:
        """Return what a step of so many tokens is expected to take."""
        return self._fixed + self._slope * tokens + self._odd * (tokens % 2)

    def _add(self, tokens: int, seconds: float) -> None:
        values = np.array([1.0, tokens, tokens % 2, seconds])
        self._sums += np.outer(values, values)

    def _fit(self) -> None:
        (tokens, odd, seconds), products = self._moments()
        prior = seconds * self._share / (1 + self._share * tokens)
        (among, across), (_, apart) = products[:2, :2] + np.diag([_TRUST, _TRUST_ODD])
        by_tokens, by_odd = products[0, 2] + _TRUST * prior, products[1, 2]
        slope = (by_tokens * apart - by_odd * across) / (among * apart - across * across)
        slope = min(max(slope, prior / 8), seconds / tokens)  # more tokens never take less, and none a time
        # An odd number takes no less than the even one before, and no more than the next.
        self._odd = min(max((by_odd - slope * across) / apart, 0.0), slope)
        self._slope = slope
        self._fixed = seconds - slope * tokens - self._odd * odd

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the means of tokens, oddness and seconds, and the sums of the products of their deviations."""
        count, sums = self._sums[0, 0], self._sums[0, 1:]
        return sums / count, self._sums[1:, 1:] - np.outer(sums, sums) / count
