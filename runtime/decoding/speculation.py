"""Speculation: tokens that a text may continue with are run beside its next one, and kept where they come true.

A token of a draft is accepted exactly where it is the one that would have been drawn: the logits that a run gives for
each token of a draft are those that plain decoding gives, and tokens are drawn from them one after another as always.
So an answer is the same with and without, sampled and guided ones too, as far as a token's logits do not depend on
what else is in its run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ...configs import UsageError

MOST_DRAFTED = 15
"""Tokens that a draft has at most, where nothing else is asked for."""
_LONGEST = 64
# A plan has to promise this much more than none: costs are known to a few percent.
_MARGIN = 1.03

_Text = TypeVar("_Text")


@dataclass(frozen=True)
class Speculation:
    """How far texts may run ahead."""

    most: int = MOST_DRAFTED
    """Tokens of a draft at most; 0 runs none ahead."""
    always: bool = False
    """Whether to run every draft, instead of those that are likely to be worth their time."""

    @classmethod
    def parse(cls, text: str) -> "Speculation":
        """Read what a user says: `auto`, `off`, or how many tokens to run ahead wherever there is a draft.

        Raises:
            UsageError: it is none of these.

        """
        if text in ("auto", "off"):
            return AUTO if text == "auto" else OFF
        if not text.isascii() or not text.isdigit() or not 0 < int(text) <= _LONGEST:
            raise UsageError(f"speculation must be auto, off, or a number of tokens from 1 to {_LONGEST}, got {text!r}")
        return cls(int(text), always=True)

    def __str__(self) -> str:
        return str(self.most) if self.always else "auto" if self.most else "off"


AUTO, OFF = Speculation(), Speculation(0)


@dataclass(frozen=True)
class Draft:
    """Tokens that a text may continue with."""

    tokens: Sequence[int] = ()
    chances: Sequence[float] = ()
    """How likely it is that the text comes to each token: never more than at the one before."""

    def cut(self, count: int) -> "Draft":
        """Return its beginning."""
        return Draft(self.tokens[:count], self.chances[:count])


NO_DRAFT = Draft()


class Drafter(Protocol):
    """Guesses how one text continues."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Note tokens that the text has, after those noted before."""
        ...

    def draft(self, most: int) -> Draft:
        """Return a guess of at most so many tokens."""
        ...

    def learn(self, drafted: int, accepted: int) -> None:
        """Note how many tokens of the last guess were run ahead, and how many of them came true."""
        ...


def choose(
    drafts: Mapping[_Text, Draft], texts: int, seconds: Callable[[int], float], *, always: bool = False
) -> dict[_Text, Draft]:
    """Return how much of each draft to run: the plan that gives most tokens a second.

    Args:
        drafts: of the texts that have one.
        texts: how many take a step together, with a draft or without.
        seconds: what a step of so many tokens takes.
        always: take all of all drafts.

    """
    if always:
        return dict(drafts)
    offers = [
        (chance, text, length) for text, draft in drafts.items() for length, chance in enumerate(draft.chances, start=1)
    ]
    offers.sort(key=lambda offer: -offer[0])  # it keeps the order of equal ones, so that no draft has holes
    expected, best, taken = float(texts), _MARGIN * texts / seconds(texts), 0
    for count, (chance, _, _) in enumerate(offers, start=1):
        expected += chance
        speed = expected / seconds(texts + count)
        if speed > best:
            best, taken = speed, count
    lengths = {text: length for _, text, length in offers[:taken]}
    return {text: drafts[text].cut(length) for text, length in lengths.items()}
