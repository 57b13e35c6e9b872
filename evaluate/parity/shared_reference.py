"""The reference for many packages: each sequence is run once, whoever asks for it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ...configs.progress import Progress
from ...export.sources.checkpoint import Checkpoint
from .compare import Rows


class SharedReference:
    """A checkpoint's float32 logits over sequences, whose hidden states are kept: 4 bytes * hidden size a token."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._reference: Any = None  # of `evaluate.reference`, which imports torch
        self._hidden: dict[bytes, Any] = {}

    def run(self, sequences: Sequence[np.ndarray], *, progress: Progress) -> None:
        """Run those sequences that have not been run, in one pass over the model's layers.

        Args:
            sequences: token ids, one array of shape [tokens] for each sequence.
            progress: called before each layer.

        Raises:
            SourceError: a weight cannot be read.

        """
        new = {_key(ids): ids for ids in sequences if _key(ids) not in self._hidden}
        if not new:
            return
        if self._reference is None:
            from .reference import Reference

            self._reference = Reference(self._checkpoint)
        states = self._reference.hidden_states(list(new.values()), progress=progress)
        self._hidden.update(zip(new, states, strict=True))

    def rows(self, ids: np.ndarray) -> Rows:
        """Return what gives the logits of a sequence that was run."""
        return partial(self._rows, self._hidden[_key(ids)])

    def _rows(self, hidden: Any, start: int, stop: int) -> np.ndarray:
        return self._reference.logits(hidden, start, stop).numpy()


def _key(ids: np.ndarray) -> bytes:
    return np.ascontiguousarray(ids, dtype=np.int64).tobytes()
