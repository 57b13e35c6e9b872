"""Packages against each other: the same text through two graphs, or through one graph on two providers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ...configs import Target
from ..parity.metrics import Comparison

_SAME_FORMAT_KL = 0.05
"""Nats between packages whose weights were rounded alike: activations differ (float16, int8), weights hardly."""
_FLOAT16_KL = 1e-3
"""Nats between float32 and float16, as `cuda-fp16` may have against the reference."""


@dataclass(frozen=True)
class Sample:
    """What one package gave for the first positions of the text on one provider."""

    target: Target
    provider: str
    ran_on: str
    """ONNX Runtime's name of the provider."""
    logits: np.ndarray
    """float32 [positions, vocabulary]"""

    @property
    def name(self) -> str:
        """Target and provider."""
        return f"{self.target.name} ({self.ran_on.removesuffix('ExecutionProvider')})"


@dataclass(frozen=True)
class CrossCheck:
    """How far two packages are from each other."""

    first: str
    second: str
    positions: int
    mean_kl: float
    """Mean of KL(first || second), in nats."""
    top1_agreement: float
    threshold: float | None
    """Of the mean KL; None: measured and judged by nothing."""

    @property
    def passed(self) -> bool | None:
        """Whether the mean KL keeps its threshold (NaN does not); None without one."""
        return None if self.threshold is None else self.mean_kl <= self.threshold

    def __str__(self) -> str:
        limit = "" if self.threshold is None else f", must be at most {self.threshold:g}"
        return f"{self.first} and {self.second}: mean KL {self.mean_kl:.3g}{limit}"


def cross_checks(samples: Sequence[Sample]) -> Iterator[CrossCheck]:
    """Hold each two packages of the same weights against each other, and each other one against the most exact.

    Two that were rounded to nearest alike have to agree closely, whatever they are for; all others are measured only,
    since the verification judges how far each may be from the model.
    """
    ordered = sorted(
        samples, key=lambda sample: (sample.target.quantization is not None, sample.target.io_dtype == "float16")
    )
    for first, second in combinations(ordered, 2):
        threshold = _threshold(first.target, second.target)
        if threshold is not None or first is ordered[0]:
            yield _compare(first, second, threshold)


def _threshold(first: Target, second: Target) -> float | None:
    if first.quantization is None and second.quantization is None:
        return _FLOAT16_KL
    if first is second:  # one package on two providers
        return _SAME_FORMAT_KL
    if first.quantization is None or second.quantization is None:
        return None
    one, other = first.quantization, second.quantization
    # Calibrated weights differ between targets: a search that meets other roundings ends elsewhere, and as close.
    alike = (one.weights, one.overrides, one.method) == (other.weights, other.overrides, "rtn")
    return _SAME_FORMAT_KL if alike else None


def _compare(first: Sample, second: Sample, threshold: float | None) -> CrossCheck:
    comparison = Comparison()
    # Perplexities are no part of this, so any tokens will do for those that follow.
    comparison.add(first.logits, second.logits, np.zeros(len(first.logits) - 1, dtype=np.int64))
    metrics = comparison.result()
    return CrossCheck(first.name, second.name, metrics.positions, metrics.mean_kl, metrics.top1_agreement, threshold)
