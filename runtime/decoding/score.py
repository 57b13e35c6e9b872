"""How likely a model finds a text."""

import math
from collections.abc import Iterator, Sequence
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
    for rows, following in run_through(cache, tokens):
        after = log_softmax(rows)
        logprobs += [float(after[i, token]) for i, token in enumerate(following)]
    return Score(tuple(tokens), tuple(logprobs))


def run_through(cache: KvCache, tokens: Sequence[int]) -> Iterator[tuple[np.ndarray, Sequence[int]]]:
    """Run a text part by part: yields logits after tokens in a row, float32 [rows, vocabulary], and what follows each.

    Args:
        cache: an empty cache with room for all.
        tokens: token ids.

    Raises:
        EngineError: the engine failed.

    """
    done = 0
    for reached in cache.prefill(tokens):
        if reached == done:
            continue
        rows = cache.run_logits()
        if len(rows) < reached - done:
            yield from _one_by_one(cache, tokens, done)
            return
        following = tokens[done + 1 : reached + 1]
        yield rows[: len(following)], following
        done = reached


def _one_by_one(cache: KvCache, tokens: Sequence[int], done: int) -> Iterator[tuple[np.ndarray, Sequence[int]]]:
    # The graph runs its head on the last token only, so each token has to be the last one once.
    for _ in cache.prefill(tokens[: done + 1]):
        pass
    for token in tokens[done + 1 :]:
        yield cache.logits()[None], [token]
        cache.append(token)
