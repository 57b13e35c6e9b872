"""How many tokens of each prompt a step runs, so that no answer stands still for longer than it may."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from .piece_costs import Work

# A step has twice as many tokens as those that were measured at most, and so many in any case: what is known of small
# steps says little of large ones. What was measured counts for less with each step since.
_WIDER, _LEAST_WIDE, _REMEMBERED = 2, 8, 0.999


class Costs(Protocol):
    """Knows what steps take."""

    def note(self, work: Work, seconds: float) -> None:
        """Learn from a step."""
        ...

    def seconds(self, work: Work) -> float:
        """Return what a step takes."""
        ...


class PiecePlanner:
    """Gives each prompt its tokens of a step."""

    def __init__(self, costs: Costs, step_seconds: float, longest: int) -> None:
        """Begin.

        Args:
            costs: of steps.
            step_seconds: how long answers may stand still for pieces of prompts.
            longest: tokens of prompts that a step has at most.

        """
        self._costs = costs
        self._step_seconds, self._longest = step_seconds, longest
        self._passed = False
        self._widest = 0.0  # tokens of the steps that were measured
        self._alone: tuple[Work, float] | None = None  # the last step without pieces

    def note(self, work: Work, seconds: float, *, prompts: bool) -> None:
        """Learn from a step, with pieces of prompts or without."""
        self._costs.note(work, seconds)
        self._widest = max(self._widest * _REMEMBERED, work.tokens)
        if not prompts:
            self._alone = work, seconds

    def budget(self, answers: Work) -> float:
        """Return how long answers may stand still, from one step's end to the next one's.

        Where they take more than half of `step_seconds` by themselves, prompts get as long as they do: answers then
        come at half of their speed at worst, and prompts still get on. How long that is was measured without pieces:
        steps with pieces all take about as long, and do not tell what of it a run takes in any case.
        """
        alone = self._costs.seconds(answers)
        if self._alone:
            work, seconds = self._alone
            alone *= seconds / self._costs.seconds(work)
        return max(self._step_seconds, 2 * alone)

    def tokens(self, answers: Work | None, prompts: Sequence[tuple[int, int]], spent: float = 0.0) -> list[int]:
        """Return how many tokens of each prompt a step runs.

        Args:
            answers: what the step does without any; None where no answer waits for it.
            prompts: for each prompt, the first come first, tokens in the cache and tokens that wait.
            spent: seconds that answers have stood still for already, by what was done since the last step.

        Returns:
            Without answers, `longest` tokens in equal shares, what is left to the first come. With answers, shares of
            the time that is left of the budget: none for some, but one token for the first come at least. What was done
            since the last step may have taken all of the budget: then the prompts wait, but not twice in a row.

        """
        if not answers:
            return self._shared_out(prompts)
        ends = self.budget(answers) - spent
        left = min(self._longest, max(_LEAST_WIDE, int(_WIDER * self._widest)))
        self._passed = not self._passed and ends < self._costs.seconds(answers)
        counts = [0] * len(prompts)
        for position, (start, waiting) in _latest_first([] if self._passed else prompts):
            now = self._costs.seconds(answers)
            share = now + (ends - now) / (position + 1)
            fitting = range(1, min(waiting, left) + 1)
            counts[position] = bisect_right(fitting, share, key=partial(self._with, answers, start))
            if not position and left:
                counts[0] = max(counts[0], 1)
            left -= counts[position]
            answers += Work.of_row(start, counts[position])
        return counts

    def _with(self, work: Work, start: int, tokens: int) -> float:
        return self._costs.seconds(work + Work.of_row(start, tokens))

    def _shared_out(self, prompts: Sequence[tuple[int, int]]) -> list[int]:
        counts, left = [0] * len(prompts), self._longest
        for position, (_, waiting) in _latest_first(prompts):
            counts[position] = min(waiting, max(1, left // (position + 1)))
            left -= counts[position]
        return counts


def _latest_first(prompts: Sequence[tuple[int, int]]) -> list[tuple[int, tuple[int, int]]]:
    """Return prompts with their places, so that what the later ones need not goes to the first come."""
    return list(enumerate(prompts))[::-1]
