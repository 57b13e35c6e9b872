"""`selftest.json`: some texts, what the float32 reference says after them, and how far this package may be from it.

The reference's distribution is kept as its most likely tokens; all other tokens count as one. The Kullback-Leibler
divergence of these shares is never more than that of the whole distributions, and a wrong kernel moves it as much.
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
from ..decoding.sampling import log_softmax

SELF_TEST_NAME = "selftest.json"
FORMAT = 1
TOKENS = 8
"""Most likely tokens that are kept of each distribution."""
_REMEDY = "make it again: phi3-onnx verify PACKAGE, or do without: --no-self-test"
_LEAST_SHARE = 1e-12


@dataclass(frozen=True)
class Expectation:
    """What the reference says of the token after one position."""

    position: int
    """Of the token that it was given last, in its text."""
    tokens: tuple[int, ...]
    """The most likely ones, best first."""
    log_probabilities: tuple[float, ...]
    """Theirs, in nats."""

    def distance(self, logits: np.ndarray) -> float:
        """Return KL(reference || logits) in nats, over these tokens and all others as one; inf for no finite figure.

        Args:
            logits: those of the position, float [vocabulary].

        """
        if not np.isfinite(logits).all():
            return math.inf
        found = np.exp(log_softmax(logits[None])[0, list(self.tokens)])
        wanted = np.exp(self.log_probabilities)
        p, q = (np.maximum([*shares, 1 - shares.sum()], _LEAST_SHARE) for shares in (wanted, found))
        return max(0.0, float((p * np.log(p / q)).sum()))


@dataclass(frozen=True)
class Text:
    """One text of the self-test."""

    tokens: tuple[int, ...]
    expected: tuple[Expectation, ...]
    """By position; the last is at the text's end."""


@dataclass(frozen=True)
class Distance:
    """How far a package is from the reference, in nats."""

    mean: float
    worst: float


@dataclass(frozen=True)
class SelfTest:
    """The content of `selftest.json`."""

    texts: tuple[Text, ...]
    expected: Distance
    """This package's, where it was verified."""
    provider: str
    """Where that was, by ONNX Runtime's name."""
    format: int = FORMAT

    @property
    def allowed(self) -> Distance:
        """The most that a provider may be away: kernels round otherwise, and a quantized cache adds its own."""
        return Distance(2 * self.expected.mean + 0.02, 3 * self.expected.worst + 0.1)

    def to_json(self) -> str:
        """Return it as the text of its file."""
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"


def expect(logits: np.ndarray, position: int) -> Expectation:
    """Return what is kept of a reference's logits at a position, float [vocabulary]."""
    values = log_softmax(logits[None])[0]
    best = np.argsort(-values, kind="stable")[:TOKENS]
    return Expectation(position, tuple(map(int, best)), tuple(round(float(values[token]), 4) for token in best))


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
            expected=Distance(*(_figure(table["expected"][name]) for name in ("mean", "worst"))),
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
    values = tuple(-_figure(-value) for value in entry["log_probabilities"])
    if len(values) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens have {len(values)} log probabilities")
    if not isinstance(entry["position"], int):
        raise TypeError(f"{entry['position']!r:.80} is no position")
    return Expectation(entry["position"], tokens, values)


def _ids(values: Sequence[Any], vocab_size: int) -> tuple[int, ...]:
    if not isinstance(values, list) or not 0 < len(values) <= _LONGEST:
        raise ValueError(f"{values!r:.80} is no list of 1 to {_LONGEST} tokens")
    if wrong := [value for value in values if type(value) is not int or not 0 <= value < vocab_size]:
        raise ValueError(f"{wrong[0]!r:.80} is no token of {vocab_size}")
    return tuple(values)


def _figure(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r:.80} is no distance in nats")
    return float(value)
