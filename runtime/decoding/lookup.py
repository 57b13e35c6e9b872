"""Prompt lookup: a text whose end it has had before may continue as it did there.

Summaries, edits, extractions and code repeat what their prompt says (Saxena, "Prompt Lookup Decoding", 2023). The
longest end that came before is the best guess (SuffixDecoding, arXiv:2411.04975), and the longer it is the more of
what followed it comes again.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from .speculation import Draft

_LEAST_MATCH = 2
_LONGEST_MATCH = 32
_MOST_PLACES = 32
"""Places that are looked at, the latest first."""
# How often the next token was that of the place looked up, by the length of the match (from 2, 4, 8 and 16 tokens
# on): greedy answers of the small real model, `tests/bench/speculation.py --levels`.
_PRIOR = (0.5, 0.84, 0.85, 0.92)
_PRIOR_WEIGHT = 3.0
# Of what was learnt, from one draft to the next: an answer turns from quoting to its own words and back.
_REMEMBERED = 0.93
# Likewise for each token without a draft, so that a text that was not worth any is tried again after a while.
_REMEMBERED_IDLY = 0.985


class Lookup:
    """One text, and where each pair of its tokens stands."""

    def __init__(self) -> None:
        """Begin with an empty text."""
        self._tokens: list[int] = []
        self._places: defaultdict[tuple[int, int], list[int]] = defaultdict(list)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens to the text."""
        for token in tokens:
            if self._tokens:
                self._places[self._tokens[-1], token].append(len(self._tokens))
            self._tokens.append(token)

    def find(self, most: int) -> tuple[list[int], int]:
        """Return what followed the longest end of the text where it stood before, and the length of that end.

        Of several places that match as far, the latest counts. Where its continuation comes to the end of the text,
        it is repeated from there: a text in a loop is expected to stay in it.

        Args:
            most: tokens to return.

        """
        length, place = max(self._matches(), default=(0, 0))
        if not length:
            return [], 0
        following = self._tokens[place + 1 : place + 1 + most]
        loop = len(following)
        return [following[index % loop] for index in range(most)] if loop < most else following, length

    def _matches(self) -> Iterator[tuple[int, int]]:
        """Yield the length of the match at each place where the last two tokens stood before, and that place."""
        tokens, last = self._tokens, len(self._tokens) - 1
        places = self._places.get((tokens[-2], tokens[-1]), ()) if last > 0 else ()
        for place in places[-_MOST_PLACES - 1 : -1]:  # the last one is the end itself
            length, most = _LEAST_MATCH, min(_LONGEST_MATCH, place + 1)
            while length < most and tokens[place - length] == tokens[last - length]:
                length += 1
            yield length, place


class LookupDrafter:
    """Drafts by lookup, which learns how much of a match one text is worth."""

    def __init__(self, text: Lookup | None = None) -> None:
        """Begin without a text, or with one that was looked up before."""
        self._text = text or Lookup()
        self._matched = 0
        self._came = [0.0] * len(_PRIOR)
        self._tried = [0.0] * len(_PRIOR)

    def extend(self, tokens: Sequence[int]) -> None:
        """Note tokens that the text has; see `Drafter.extend`."""
        self._text.extend(tokens)
        self._fade(_REMEMBERED_IDLY ** len(tokens))

    def draft(self, most: int) -> Draft:
        """Return what the text may continue with; see `Drafter.draft`."""
        tokens, self._matched = self._text.find(most)
        chance, chances = 1.0, list[float]()
        for index in range(len(tokens)):
            chance *= self._chance(self._matched + index)
            chances.append(chance)
        return Draft(tokens, chances)

    def learn(self, drafted: int, accepted: int) -> None:
        """Note what became of the last draft; see `Drafter.learn`."""
        self._fade(_REMEMBERED)
        for index in range(min(drafted, accepted + 1)):
            level = _level(self._matched + index)
            self._tried[level] += 1
            self._came[level] += index < accepted

    def _chance(self, matched: int) -> float:
        level = _level(matched)
        prior = _PRIOR_WEIGHT * _PRIOR[level]
        return (prior + self._came[level]) / (_PRIOR_WEIGHT + self._tried[level])

    def _fade(self, share: float) -> None:
        self._came = [value * share for value in self._came]
        self._tried = [value * share for value in self._tried]


def _level(matched: int) -> int:
    return min(matched.bit_length() - _LEAST_MATCH.bit_length(), len(_PRIOR) - 1)
