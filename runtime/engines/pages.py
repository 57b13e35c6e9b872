"""Memory whose pages the operating system gives one by one, as they are written to."""

import math
import mmap
import sys
from typing import Any

import numpy as np


def lazy_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array of zeros that costs what is written to it.

    NumPy asks Linux for huge pages, of 2 MB: one token in each slot of an arena would then take, and zero, all of it.

    Raises:
        MemoryError: the system gives no such address space.

    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if sys.platform != "linux" or not size:
        return np.zeros(shape, dtype)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    except OSError as error:
        raise MemoryError(f"{size} bytes: {error.strerror or error}") from error
    return np.frombuffer(memory, dtype).reshape(shape)
