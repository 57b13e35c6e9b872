"""Calibration samples: token sequences of one length, drawn from texts with a seed."""

from collections.abc import Callable, Iterable

import numpy as np

from ..configs import UsageError


def draw_samples(
    texts: Iterable[str],
    encode: Callable[[str], list[int]],
    *,
    num_samples: int,
    sequence_length: int,
    seed: int,
) -> np.ndarray:
    """Cut texts into sequences and draw some of them.

    Texts are joined, so that short ones count too. Where there is less text than was asked for, sequences overlap
    rather than repeat.

    Args:
        texts: The texts.
        encode: Text -> token ids.
        num_samples: Sequences to draw.
        sequence_length: Tokens of each.
        seed: Of the draw.

    Returns:
        int64 [num_samples, sequence_length].

    Raises:
        UsageError: the texts have fewer tokens than one sequence.

    """
    tokens = np.concatenate([np.zeros(0, np.int64), *(np.asarray(encode(text), np.int64) for text in texts)])
    if len(tokens) < sequence_length:
        raise UsageError(
            f"the calibration text has {len(tokens)} tokens, one sequence takes {sequence_length}; "
            "give more text (--calibration) or shorter sequences (--sequence-length)"
        )
    random = np.random.default_rng(seed)
    whole = len(tokens) // sequence_length
    if whole >= num_samples:
        starts = random.permutation(whole)[:num_samples] * sequence_length
    else:
        starts = np.linspace(0, len(tokens) - sequence_length, num_samples).astype(np.int64)
    return np.stack([tokens[start : start + sequence_length] for start in np.sort(starts)])
