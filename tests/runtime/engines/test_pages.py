"""The arena's memory: zeros that can be written to, and that cost what is written."""

import sys

import numpy as np
import psutil
import pytest
from phi3_onnx.runtime.engines.arena import Arena, CacheShape
from phi3_onnx.runtime.engines.pages import lazy_zeros


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_they_are_zeros_and_can_be_written(dtype: type) -> None:
    array = lazy_zeros((3, 5), dtype)
    assert array.dtype == dtype and not array.any()
    array[2, 4] = 7
    assert array.sum() == 7


def test_an_array_without_elements_is_none_the_less_one() -> None:
    assert lazy_zeros((0, 4), np.int8).shape == (0, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of the process")
def test_a_token_in_each_slot_takes_its_pages_and_no_more() -> None:
    arena = Arena(CacheShape(4, 8, 64, np.int8), 8, 4096)  # 134 MB of addresses
    before = psutil.Process().memory_info().rss
    for buffer in arena.buffers:
        buffer[:, :, 0] = 1
    taken = psutil.Process().memory_info().rss - before
    assert taken < 16e6, f"{taken / 1e6:.0f} MB for {8 * 8 * 8} pages of 4 kB"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere NumPy reserves it")
def test_too_much_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="bytes"):
        lazy_zeros((1 << 60,), np.int8)
