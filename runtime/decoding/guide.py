"""Guidance as a mask on logits, by `llguidance`: the same on every engine that gives logits."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache, cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np

from ...configs import UsageError
from ..text.tokenizer import Tokenizer
from .engine import Guidance
from .schemas import tight_schema

_MOST_ITEMS = 10_000
"""Items of llguidance's parser for one mask. Its own limit, 50,000, lets a mask of an ambiguous grammar take 0.4 s."""


@cache
def can_mask() -> bool:
    """Whether `llguidance` is installed, without which there are no guides."""
    return find_spec("llguidance") is not None


class Guides:
    """Makes guides for the tokens of one model."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_tokens: frozenset[int]) -> None:
        """Take what the masks are about.

        Args:
            tokenizer: the model's.
            vocab_size: how many logits the model has.
            end_tokens: those that end an answer; they may come where the guidance lets it end.

        """
        self._tokenizer = tokenizer
        self._vocab_size = max(vocab_size, tokenizer.vocab_size)
        self._end_tokens = sorted(end_tokens)

    def prepare(self) -> None:
        """Make what every guide needs: it takes a third of a second, for which no other thread can run."""
        with suppress(UsageError, ValueError):  # said when guidance is asked for
            _ = self._library

    def guide(self, guidance: Guidance) -> "Guide":
        """Return a guide through one answer.

        Raises:
            UsageError: `llguidance` is not installed, or the guidance is not understood.

        """
        library, tokens = self._library
        limits = library.LLParserLimits(step_max_items=_MOST_ITEMS)
        matcher = library.LLMatcher(tokens, self._grammar(library.LLMatcher, guidance), log_level=0, limits=limits)
        if matcher.is_error():
            problem = " ".join(str(matcher.get_error()).split())
            raise UsageError(f"the {guidance.kind} is not understood: {problem}")
        return Guide(matcher, guidance, self._end_tokens)

    @cached_property
    def _library(self) -> tuple[Any, Any]:
        """The module, and its own copy of the tokenizer, which takes a while to make."""
        try:
            import llguidance
        except ImportError as error:
            raise UsageError("guidance needs the package llguidance: pip install llguidance") from error
        # One end token only: before 1.7 the package takes no list, and the wheels for older systems end at 1.6.
        end = self._end_tokens[0] if self._end_tokens else None
        return llguidance, llguidance.LLTokenizer(self._tokenizer.to_json(), n_vocab=self._vocab_size, eos_token=end)

    @staticmethod
    def _grammar(matcher: Any, guidance: Guidance) -> str:
        try:
            if guidance.kind == "json_schema":
                return matcher.grammar_from_json_schema(tight_schema(guidance.text))
            if guidance.kind == "regex":
                return matcher.grammar_from_regex(guidance.text)
            return matcher.grammar_from_lark(guidance.text)
        except ValueError as error:
            raise UsageError(f"the {guidance.kind} is not understood: {' '.join(str(error).split())}") from error


class Guide:
    """Where one answer stands in its guidance."""

    def __init__(self, matcher: Any, guidance: Guidance, end_tokens: Sequence[int]) -> None:
        self._matcher = matcher
        self._guidance = guidance
        self._end_tokens = list(end_tokens)

    def copy(self) -> "Guide":
        """Return another that stands where this one does."""
        return Guide(self._matcher.deep_copy(), self._guidance, self._end_tokens)

    def mask(self, logits: np.ndarray) -> np.ndarray:
        """Return logits, float32 [vocabulary], with minus infinity for every token that would break the form.

        Raises:
            UsageError: the guidance takes too much to follow.

        """
        allowed = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8)[: len(logits)] != 0
        self._check()
        if self._end_tokens and allowed[self._end_tokens[0]]:
            allowed[self._end_tokens] = True
        return np.where(allowed, logits, np.float32(-np.inf))

    def take(self, token: int) -> None:
        """Note the token that was chosen."""
        self._matcher.consume_token(self._end_tokens[0] if token in self._end_tokens else token)
        self._check()

    @property
    def ended(self) -> bool:
        """Whether nothing can follow but the end."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            problem = " ".join(str(self._matcher.get_error()).split())
            raise UsageError(f"the {self._guidance.kind} cannot be followed: {problem}")
