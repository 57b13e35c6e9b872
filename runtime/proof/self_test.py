"""`selftest.json`: some texts, what the float32 reference says after them, and what this package says there.

The package's own answer, kept where it was verified, makes the test sharp: rounding to 4 bits moves a package by tenths
of a nat from its reference, but no right kernel moves it by more than hundredths from itself.

Distributions are kept as their most likely tokens; all other tokens count as one. The Kullback-Leibler divergence of
these shares is never more than that of the whole distributions, and a wrong kernel moves it as much.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...configs import PackageError
from ...configs.files import read_json
from ...configs.manifest import SELF_TEST_NAME
from ..decoding.sampling import log_softmax

FORMAT = 1
TOKENS = 6
"""Most likely tokens that are kept, of the reference's distribution and of the package's own."""
_REMEDY = "make it again: phi3-onnx verify PACKAGE, or do without: --no-self-test"
_LEAST_SHARE = 1e-12


@dataclass(frozen=True)
class Expectation:
    """What is known of the token after one position."""

    position: int
    """Of the token that was run last, in its text."""
    tokens: tuple[int, ...]
    """The most likely ones for the reference or the package, the reference's best first."""
    log_probabilities: tuple[float, ...]
    """The reference's, in nats."""
    measured: tuple[float, ...]
    """The package's own where it was verified, in nats."""

    def found(self, logits: np.ndarray) -> np.ndarray:
        """Return the log probabilities of these tokens, float64 [tokens].

        Args:
            logits: those of the position, float [vocabulary].

        """
        return log_softmax(logits[None])[0, list(self.tokens)]


@dataclass(frozen=True)
class Text:
    """One text of the self-test."""

    tokens: tuple[int, ...]
    expected: tuple[Expectation, ...]
    """By position; the last is at the text's end."""


@dataclass(frozen=True)
class Distance:
    """How far one distribution is from another over some positions, in nats."""

    mean: float
    worst: float

    def within(self, limit: "Distance") -> bool:
        """Whether both figures keep a limit; those that are not finite do not."""
        return self.mean <= limit.mean and self.worst <= limit.worst


@dataclass(frozen=True)
class SelfTest:
    """The content of `selftest.json`."""

    texts: tuple[Text, ...]
    expected: Distance
    """From the reference to this package, where it was verified."""
    drift: Distance
    """The most that a provider may be away from this package, where it was verified."""
    provider: str
    """Where that was, by ONNX Runtime's name."""
    format: int = FORMAT

    @property
    def allowed(self) -> Distance:
        """The most that a provider may be away from the reference."""
        return Distance(2 * self.expected.mean + 0.02, 3 * self.expected.worst + 0.1)

    @property
    def positions(self) -> int:
        """How many distributions are compared."""
        return sum(len(text.expected) for text in self.texts)

    def __str__(self) -> str:
        return (
            f"{self.positions} positions of {len(self.texts)} texts, {self.expected.mean:.3g} nats from the reference "
            f"on {self.provider}"
        )

    def to_json(self) -> str:
        """Return it as the text of its file."""
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"


def divergence(wanted: np.ndarray | Sequence[float], found: np.ndarray) -> float:
    """Return KL(wanted || found) in nats over some tokens, and all others as one; inf where there is no finite figure.

    Args:
        wanted: log probabilities of the tokens, float [tokens].
        found: theirs in the other distribution, likewise.

    """
    if not np.isfinite(found).all():
        return math.inf
    p, q = (np.maximum([*shares, 1 - shares.sum()], _LEAST_SHARE) for shares in (np.exp(wanted), np.exp(found)))
    return max(0.0, float((p * np.log(p / q)).sum()))


def expect(reference: np.ndarray, measured: np.ndarray, position: int) -> Expectation:
    """Return what is kept of a position.

    Args:
        reference: the reference's logits there, float [vocabulary].
        measured: the package's own, likewise.
        position: of the token that was run last, in its text.

    """
    values, own = (log_softmax(logits[None])[0] for logits in (reference, measured))
    likely = {int(token) for part in (values, own) for token in np.argsort(-part, kind="stable")[:TOKENS]}
    tokens = sorted(likely, key=lambda token: (-values[token], token))
    figures = (tuple(round(float(part[token]), 4) for token in tokens) for part in (values, own))
    return Expectation(position, tuple(tokens), *figures)


def read_self_test(folder: Path, vocab_size: int) -> SelfTest | None:
    """Read the self-test of a package; None where it has none.

    Args:
        folder: the package's.
        vocab_size: of its model.

    Raises:
        PackageError: the file is damaged, or from a newer version.

    """
    path = folder / SELF_TEST_NAME
    if not path.is_file():
        return None
    table = read_json(path, remedy=_REMEDY)
    try:
        if table["format"] > FORMAT:
            raise PackageError(
                f"{path} has format {table['format']}, this version reads {FORMAT}; upgrade phi3-onnx, or load with "
                "--no-self-test"
            )
        found = SelfTest(
            texts=tuple(_text(entry, vocab_size) for entry in table["texts"]),
            expected=_distance(table["expected"]),
            drift=_distance(table["drift"]),
            provider=str(table["provider"]),
        )
        if not found.texts:
            raise ValueError("it has no texts")
    except (KeyError, TypeError, ValueError) as error:
        raise PackageError(f"{path} is damaged: {_described(error)}", remedy=_REMEDY) from error
    return found


def _described(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


_LONGEST = 1024


def _text(entry: Mapping[str, Any], vocab_size: int) -> Text:
    tokens = _ids(entry["tokens"], vocab_size)
    expected = tuple(_expectation(value, vocab_size) for value in entry["expected"])
    places = [value.position for value in expected]
    if not places or places != sorted(set(places)) or places[0] < 0 or places[-1] != len(tokens) - 1:
        raise ValueError(f"positions {places!r:.80} do not lead to the end of a text of {len(tokens)} tokens")
    return Text(tokens, expected)


def _expectation(entry: Mapping[str, Any], vocab_size: int) -> Expectation:
    tokens = _ids(entry["tokens"], vocab_size)
    reference, measured = (
        tuple(-_figure(-value) for value in entry[name]) for name in ("log_probabilities", "measured")
    )
    if not len(reference) == len(measured) == len(tokens):
        raise ValueError(f"{len(tokens)} tokens have {len(reference)} and {len(measured)} log probabilities")
    if not isinstance(entry["position"], int):
        raise TypeError(f"{entry['position']!r:.80} is no position")
    return Expectation(entry["position"], tokens, reference, measured)


def _ids(values: Sequence[Any], vocab_size: int) -> tuple[int, ...]:
    if not isinstance(values, list) or not 0 < len(values) <= _LONGEST:
        raise ValueError(f"{values!r:.80} is no list of 1 to {_LONGEST} tokens")
    if wrong := [value for value in values if type(value) is not int or not 0 <= value < vocab_size]:
        raise ValueError(f"{wrong[0]!r:.80} is no token of {vocab_size}")
    return tuple(values)


def _distance(table: Mapping[str, Any]) -> Distance:
    return Distance(*(_figure(table[name]) for name in ("mean", "worst")))


def _figure(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r:.80} is no distance in nats")
    return float(value)
