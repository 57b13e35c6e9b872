"""Making the self-test that travels with a package, where the package was held against its reference."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...runtime.engines.session import LogitsSession
from ...runtime.proof.replay import distance
from ...runtime.proof.self_test import Distance, SelfTest, Text, divergence, expect
from ...runtime.providers.graph_file import read_nodes
from .compare import Rows

TOKENS = 24
"""Of each text: a replay of three takes a model of 3.8 B parameters three seconds on 2 CPU cores."""
_INT8 = 4
"""The accuracy level of `MatMulNBits` whose kernels round activations to 8 bits."""
_FIRST, _PIECE = 12, 16
"""A replay runs this many tokens, then up to that many, and then one at a time."""

_EXACT, _COARSE = Distance(0.003, 0.02), Distance(0.04, 0.3)
"""How far a right kernel may be: in floating point, and with activations rounded to 8 bits, where the least difference
in a sum moves a value to the next step, and some kernels do not round at all. Measured with the small real model's
`cpu-int4-rtn`, in the mean: 0.002 by GenAI, and without rounding; 0.011 with the int8 KV cache of `decode.onnx`; 0.018
between x86 and ARM64 (dot products)."""


def choose_texts(text: np.ndarray, prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Return the token ids of the texts: the beginnings of the project's own text and of the last conversations.

    Args:
        text: token ids of the text, int64 [tokens].
        prompts: those of conversations, of any lengths.

    """
    return tuple(ids[:TOKENS] for ids in (text, *prompts[-2:]))


def make_self_test(
    session: LogitsSession, texts: Sequence[np.ndarray], reference: Callable[[np.ndarray], Rows], drift: Distance
) -> SelfTest:
    """Return the self-test of a package.

    Args:
        session: the package, on the provider where it is verified.
        texts: token ids, int64 [tokens] each.
        reference: returns what gives the reference's logits of a text.
        drift: how far another right kernel may be from this package.

    Raises:
        PackageError: the graph fails.

    """
    found: list[Text] = []
    for ids in texts:
        measured = np.concatenate([rows for _, rows in session.logits(ids, chunk=len(ids))])
        wanted = reference(ids)(0, len(ids))
        positions = _positions(len(ids))
        expected = tuple(expect(wanted[position], measured[position], position) for position in positions)
        found.append(Text(tuple(map(int, ids)), expected))
    apart = [divergence(entry.log_probabilities, np.array(entry.measured)) for text in found for entry in text.expected]
    return SelfTest(tuple(found), distance(apart), drift, session.provider)


def _positions(length: int) -> list[int]:
    first = [stop - 1 for stop in (_FIRST, _PIECE) if stop < length]
    return [*first, *range(min(_PIECE, length - 1), length)]


def drift_of(graph: Path) -> Distance:
    """Return how far a right kernel may move a package from what another right one gives.

    Raises:
        PackageError: the graph cannot be read.

    """
    products = (node for node in read_nodes(graph) if node.operator == "MatMulNBits")
    return _COARSE if any(node.integers.get("accuracy_level") == _INT8 for node in products) else _EXACT
