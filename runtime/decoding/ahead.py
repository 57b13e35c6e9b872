"""What one text was run ahead of itself: the draft, which of its tokens came true, and what is still to come."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .engine import TokenSequence
from .speculation import NO_DRAFT, Draft, Drafter


class RunsAhead(Protocol):
    """Runs drafts of one text at a time, where a token's logits do not depend on what else is in its run."""

    @property
    def most(self) -> int:
        """Tokens of a draft at most."""
        ...

    def chosen(self, draft: Draft) -> Draft:
        """Return how much of a draft is worth its time, beside the token that is run anyway."""
        ...

    def run(self, sequence: TokenSequence, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens to a sequence of this engine; return the logits of each, float32 [tokens, vocabulary].

        Raises:
            EngineError: the run failed.

        """
        ...


class Ahead:
    """Where one text stands in its last draft."""

    def __init__(self, drafter: Drafter) -> None:
        """Begin with a text of which nothing is known yet."""
        self._drafter = drafter
        self._noted = False
        self._left: Sequence[int] = ()
        self._ran = self._came = 0
        self.drafted = self.accepted = 0
        """Tokens that were run ahead so far, and those of them that came true."""

    @property
    def left(self) -> int:
        """Tokens of the last draft that may still come true."""
        return len(self._left)

    def takes(self, token: int, before: Sequence[int]) -> bool:
        """Note the text's next token; return whether it was run ahead.

        Args:
            token: the next one.
            before: the text before it; read the first time only.

        """
        self._drafter.extend([token] if self._noted else [*before, token])
        self._noted = True
        if self._left and self._left[0] == token:
            self._left = self._left[1:]
            self._came, self.accepted = self._came + 1, self.accepted + 1
            return True
        if self._ran:
            self._drafter.learn(self._ran, self._came)
        self._ran, self._came = 0, 0
        self._left = ()
        return False

    def draft(self, most: int) -> Draft:
        """Return what may follow, `most` tokens at most."""
        return self._drafter.draft(most) if most > 0 else NO_DRAFT

    def ran(self, tokens: Sequence[int]) -> None:
        """Note the draft that was run."""
        self._left, self._ran, self._came = tokens, len(tokens), 0
        self.drafted += len(tokens)

    def forget(self) -> None:
        """Forget a draft whose run failed."""
        self._left = ()
