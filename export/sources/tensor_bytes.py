"""Exact byte ranges of weight files, read into arrays that the caller owns; nothing is mapped, nothing is kept."""

from pathlib import Path

import numpy as np
import torch

from ...configs.errors import SourceError

CHUNK_VALUES = 1 << 18
"""Values converted at a time: what a read needs beyond its result is about a MiB."""


def read_bytes(path: Path, offset: int, out: np.ndarray) -> None:
    """Fill `out` (C-contiguous, any dtype) with the bytes of a file from `offset` on.

    Each call opens the file for itself, so threads can read at once.

    Raises:
        SourceError: the file cannot be read, or ends too early.

    """
    view = out.reshape(-1).view(np.uint8).data
    done = 0
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    break
                done += count
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    if done < len(view):
        raise SourceError(
            f"{path} is truncated: {len(view)} bytes expected at offset {offset}, got {done}; get the file again"
        )


def require_finite(values: np.ndarray, tensor: str, path: Path) -> None:
    """Raise SourceError if a float array holds NaN or infinite values."""
    with np.errstate(all="ignore"):
        # One bad value spoils the sum. Only huge finite ones do too, and those are worth the second look.
        # PyTorch's sum: a third of the time that numpy's takes.
        if np.isfinite(torch.from_numpy(values).sum().item()) or np.isfinite(values).all():
            return
    raise SourceError(
        f"{path}: tensor {tensor} holds NaN or infinite values; it is damaged, or its training failed: get another"
    )
