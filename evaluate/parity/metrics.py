"""How close one model's logits are to another's: differences, KL divergence, agreement, perplexity."""

import math
from dataclasses import dataclass

import numpy as np

from ...runtime.decoding.sampling import log_softmax

_ELEMENTS_AT_ONCE = 1 << 20
"""Logits turned into float64 together: 8 MB for each array in work."""


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text: exp of the mean negative log-likelihood of its tokens."""

    mean_nll: float
    """Nats per token."""
    nll_standard_error: float
    """Of that mean, with the tokens taken as independent; NaN for fewer than two tokens."""
    tokens: int
    """Tokens predicted; the first of each sequence is not."""

    @property
    def value(self) -> float:
        """The perplexity."""
        return _exp(self.mean_nll)

    @property
    def standard_error(self) -> float:
        """The perplexity's standard error, to first order: perplexity * standard error of the mean."""
        return self.value * self.nll_standard_error


@dataclass(frozen=True)
class Metrics:
    """A package against its reference, over some positions of some text."""

    positions: int
    max_abs_diff: float
    """Largest difference between two logits of one token at one position."""
    mean_kl: float
    """Mean over positions of KL(reference || package), in nats."""
    median_kl: float
    p99_kl: float
    top1_agreement: float
    """Share of positions at which both rank the same token first."""
    reference: Perplexity
    package: Perplexity

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity of the package / that of the reference."""
        return _exp(self.package.mean_nll - self.reference.mean_nll)


class Likelihood:
    """Gathers a perplexity from logits that arrive in pieces, in float64."""

    def __init__(self) -> None:
        self._nll: list[np.ndarray] = []

    def add(self, logits: np.ndarray, following: np.ndarray) -> None:
        """Take in the logits of some positions of one sequence.

        Args:
            logits: [positions, vocabulary], any floating dtype.
            following: the token that follows each position, [positions], or fewer where the sequence ends.

        """
        step = max(1, _ELEMENTS_AT_ONCE // logits.shape[1])
        for start in range(0, len(following), step):
            tokens = following[start : start + step]
            self.add_log_probabilities(log_softmax(logits[start : start + len(tokens)]), tokens)

    def add_log_probabilities(self, log_probabilities: np.ndarray, following: np.ndarray) -> None:
        """Take in what `add` makes of logits: float64 [positions, vocabulary]."""
        self._nll.append(-log_probabilities[np.arange(len(following)), following])

    def each(self) -> np.ndarray:
        """Return the negative log-likelihood of each token that was predicted, in nats."""
        return np.concatenate(self._nll) if self._nll else np.empty(0)

    def result(self) -> Perplexity:
        """Return the perplexity of all that was added; NaN where nothing was predicted."""
        nll = self.each()
        if not len(nll):
            return Perplexity(math.nan, math.nan, 0)
        error = float(nll.std(ddof=1) / math.sqrt(len(nll))) if len(nll) > 1 else math.nan
        return Perplexity(float(nll.mean()), error, len(nll))


class Comparison:
    """Gathers what `Metrics` needs from logits that arrive in pieces, in float64, a few numbers per position."""

    def __init__(self) -> None:
        self._kl: list[np.ndarray] = []
        self._same: list[np.ndarray] = []
        self._reference, self._package = Likelihood(), Likelihood()
        self._max_abs_diff = 0.0

    def add(self, reference: np.ndarray, package: np.ndarray, following: np.ndarray) -> None:
        """Take in the logits of some positions of one sequence.

        Args:
            reference: the reference's logits, [positions, vocabulary], any floating dtype.
            package: the package's at the same positions, of the same shape.
            following: the token that follows each position, [positions], or one fewer where the last position is
                the sequence's end and nothing follows.

        Raises:
            ValueError: the shapes do not fit together.

        """
        if reference.shape != package.shape or len(reference) - len(following) not in (0, 1):
            shapes = f"{reference.shape}, {package.shape} and {following.shape}"
            raise ValueError(f"logits and following tokens must belong to the same positions, got shapes {shapes}")
        step = max(1, _ELEMENTS_AT_ONCE // reference.shape[1])
        for start in range(0, len(reference), step):
            rows = slice(start, start + step)
            self._add(reference[rows].astype(np.float64), package[rows].astype(np.float64), following[rows])

    def _add(self, reference: np.ndarray, package: np.ndarray, following: np.ndarray) -> None:
        # np.maximum keeps a NaN, where max() may lose it: broken logits must not pass for equal ones.
        self._max_abs_diff = float(np.maximum(self._max_abs_diff, np.abs(reference - package).max()))
        self._same.append(reference.argmax(axis=1) == package.argmax(axis=1))
        log_p, log_q = log_softmax(reference), log_softmax(package)
        # No distribution is closer than equal; below 0 there is only rounding, of about 1e-16.
        self._kl.append(np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0))
        self._reference.add_log_probabilities(log_p, following)
        self._package.add_log_probabilities(log_q, following)

    def each(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the KL divergence of each position, and the negative log-likelihoods of reference and package."""
        return np.concatenate(self._kl), self._reference.each(), self._package.each()

    def result(self) -> Metrics:
        """Return the metrics of all that was added.

        Raises:
            ValueError: nothing was.

        """
        if not self._kl:
            raise ValueError("no logits were compared")
        kl = np.concatenate(self._kl)
        return Metrics(
            positions=len(kl),
            max_abs_diff=self._max_abs_diff,
            mean_kl=float(kl.mean()),
            median_kl=float(np.median(kl)),
            p99_kl=float(np.quantile(kl, 0.99)),
            top1_agreement=float(np.concatenate(self._same).mean()),
            reference=self._reference.result(),
            package=self._package.result(),
        )


def _exp(exponent: float) -> float:
    # math.exp raises beyond 709.7.
    return math.inf if exponent > 700 else math.exp(exponent)
