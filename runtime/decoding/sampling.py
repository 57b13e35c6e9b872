"""Choosing the next token from its logits, in numpy: the same on every provider, and the same again with a seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...configs.options import OPTIONS, Sampling, biases


@dataclass(frozen=True)
class TokenLogprobs:
    """A token's log probability under the model, before temperature and the like, beside the most likely ones'."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(token id, log probability) of the most likely tokens, in falling order."""


class Sampler:
    """Draws tokens one after another."""

    def __init__(self, sampling: Sampling, seed: int | None = None) -> None:
        """Start a series of draws.

        Args:
            sampling: how to draw.
            seed: 0 or more: the same seed and logits give the same tokens. None differs from run to run.

        """
        if seed is not None:
            OPTIONS["seed"].check(seed)
        self.sampling = sampling
        self._random = None if sampling.greedy else np.random.default_rng(seed)
        pairs = biases(sampling.logit_bias)
        self._biased = np.array([token for token, _ in pairs], np.int64)
        self._biases = np.array([number for _, number in pairs], np.float32)

    def pick(self, logits: np.ndarray, prompt: Sequence[int] = (), answer: Sequence[int] = ()) -> int:
        """Return the next token.

        Args:
            logits: float32 [vocabulary]; not changed.
            prompt: its tokens; read only where there is a penalty.
            answer: the tokens after it so far; read only where there is a penalty.

        """
        if len(self._biased):
            logits = logits.copy()
            logits[self._biased] += self._biases
        if self.sampling.repetition_penalty != 1:
            logits = penalize(logits, (*prompt, *answer), self.sampling.repetition_penalty)
        if self.sampling.presence_penalty or self.sampling.frequency_penalty:
            logits = discourage(logits, answer, self.sampling.presence_penalty, self.sampling.frequency_penalty)
        if self._random is None:
            return int(logits.argmax())
        tokens, probabilities = distribution(logits, self.sampling)
        # One uniform number a token, and the inverse of the cumulative sum: rounding can leave its end short of 1.
        position = np.searchsorted(np.cumsum(probabilities), self._random.random(), side="right")
        return int(tokens[min(int(position), len(tokens) - 1)])


def penalize(logits: np.ndarray, seen: Iterable[int], penalty: float) -> np.ndarray:
    """Return logits with the repetition penalty of CTRL (arXiv:1909.05858) on every token of `seen`."""
    ids = np.unique(np.fromiter(seen, dtype=np.int64))
    changed = logits.copy()
    values = changed[ids]
    changed[ids] = np.where(values < 0, values * penalty, values / penalty)
    return changed


def discourage(logits: np.ndarray, answer: Sequence[int], presence: float, frequency: float) -> np.ndarray:
    """Return logits less the presence and frequency penalties of OpenAI's API on every token of `answer`.

    As there, and in vLLM, the prompt's tokens do not count: logit - count * frequency - (count > 0) * presence.
    """
    ids, counts = np.unique(np.asarray(answer, dtype=np.int64), return_counts=True)
    changed = logits.copy()
    changed[ids] -= (counts * frequency + presence).astype(logits.dtype)
    return changed


def distribution(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens that may be drawn and their probabilities.

    Args:
        logits: float32 [vocabulary].
        sampling: with a temperature above 0.

    Returns:
        int64 [tokens] and float64 [tokens]. With top_k or top_p the most likely come first, and equal logits keep the
        order of their ids; without either, all tokens come in the order of their ids.

    """
    tokens = _most_likely(logits, sampling.top_k) if sampling.top_k else np.arange(len(logits))
    scores = logits[tokens].astype(np.float64) / sampling.temperature
    weights = np.exp(scores - scores.max())
    probabilities = weights / weights.sum()
    if sampling.top_p < 1:
        if not sampling.top_k:
            tokens = _likelier_than(probabilities, (1 - sampling.top_p) / (2 * len(logits)))
            probabilities = probabilities[tokens]
        # A token stays where those before it fall short of top_p; the first always does.
        before = np.cumsum(probabilities) - probabilities
        count = int(np.count_nonzero(before < sampling.top_p))
        tokens, probabilities = tokens[:count], probabilities[:count] / probabilities[:count].sum()
    if sampling.min_p > 0:
        kept = probabilities >= sampling.min_p * probabilities.max()
        tokens, probabilities = tokens[kept], probabilities[kept] / probabilities[kept].sum()
    if sampling.typical_p < 1:
        kept = _typical(probabilities, sampling.typical_p)
        tokens, probabilities = tokens[kept], probabilities[kept] / probabilities[kept].sum()
    return tokens, probabilities


def _typical(probabilities: np.ndarray, mass: float) -> np.ndarray:
    """Return where the tokens are that are nearest to the distribution's entropy, until they have `mass` together."""
    logarithms = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    entropy = -(probabilities * logarithms).sum()
    distances = np.abs(-logarithms - entropy)
    order = np.argsort(distances, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    last = order[np.count_nonzero(before < mass) - 1]
    return np.flatnonzero(distances <= distances[last])  # ties come along, as in transformers


def _likelier_than(probabilities: np.ndarray, least: float) -> np.ndarray:
    # All tokens below (1 - top_p) / vocabulary have less than 1 - top_p together, so none of them can stay. That
    # leaves few to sort (all of them would take 13 ms a token with a vocabulary of 49152); half of it for rounding.
    candidates = np.flatnonzero(probabilities > least)
    return candidates[np.argsort(-probabilities[candidates], kind="stable")]


def _most_likely(logits: np.ndarray, count: int) -> np.ndarray:
    if count >= len(logits):
        return np.argsort(-logits, kind="stable")
    threshold = np.partition(logits, len(logits) - count)[len(logits) - count]
    # Ties at the threshold all come along, as in transformers.
    candidates = np.flatnonzero(logits >= threshold)
    return candidates[np.argsort(-logits[candidates], kind="stable")]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the natural logarithms of the softmax over the last axis, float64 of the same shape."""
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def token_logprobs(logits: np.ndarray, token: int, top: int) -> TokenLogprobs:
    """Return a token's log probability and the `top` most likely ones', from float32 logits [vocabulary]."""
    logprobs = log_softmax(logits)
    best = _most_likely(logits, top)[:top] if top else ()
    return TokenLogprobs(token, float(logprobs[token]), tuple((int(t), float(logprobs[t])) for t in best))
