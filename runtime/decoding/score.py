"""How likely a model finds a text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...configs import UsageError
from .kvcache import KvCache
from .sampling import log_softmax


@dataclass(frozen=True)
class Score:
    """Log probabilities of a text's tokens, each after those before it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """In nats, one for each token but the first."""

    @property
    def total(self) -> float:
        """The log probability of the text after its first token, in nats."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """Exp of the mean negative log probability."""
        return math.exp(-self.total / len(self.logprobs))


def score_tokens(cache: KvCache, tokens: Sequence[int]) -> Score:
    """Return the log probabilities of a text's tokens.

    Args:
        cache: an empty cache.
        tokens: token ids.

    Raises:
        UsageError: there are fewer than two tokens, or more than fit.
        EngineError: the engine failed.

    """
    if len(tokens) < 2:
        raise UsageError(f"a text to score must have 2 tokens or more, got {len(tokens)}")
    cache.reserve(len(tokens))
    logprobs: list[float] = []
    done = 0
    for reached in cache.prefill(tokens):
        if reached == done:
            continue
        rows = cache.run_logits()
        if len(rows) < reached - done:
            return _one_by_one(cache, tokens)
        logprobs += _after(rows, tokens[done + 1 : reached + 1])
        done = reached
    return Score(tuple(tokens), tuple(logprobs))


def _one_by_one(cache: KvCache, tokens: Sequence[int]) -> Score:
    # The graph runs its head on the last token only, so each token has to be the last one once.
    for _ in cache.prefill(tokens[:1]):
        pass
    logprobs: list[float] = []
    for token in tokens[1:]:
        logprobs += _after(cache.logits()[None], [token])
        cache.append(token)
    return Score(tuple(tokens), tuple(logprobs))


def _after(rows: np.ndarray, following: Sequence[int]) -> list[float]:
    logprobs = log_softmax(rows[: len(following)])
    return [float(logprobs[i, token]) for i, token in enumerate(following)]
