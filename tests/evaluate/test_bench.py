"""The benchmark runs what it says, and refuses what does not fit. Nothing here looks at a clock."""

from collections.abc import Callable
from pathlib import Path

import pytest
from phi3_onnx.configs import UsageError
from phi3_onnx.evaluate.bench import bench


def test_it_measures_a_package(tiny_package: Callable[..., Path]) -> None:
    done = bench(tiny_package("plain"), prompt_tokens=40, decoded_tokens=5, repeat=2)
    speed = done.speed
    assert (speed.provider, speed.prompt_tokens, speed.decoded_tokens, speed.repeat) == ("cpu", 40, 5, 2)
    assert speed.prefill_tokens_per_second > 0
    assert speed.decode_tokens_per_second > 0
    assert done.peak_memory_bytes > 10 << 20


def test_more_tokens_than_the_context_holds(tiny_package: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"4090 \+ 10 tokens do not fit into the context of 4096"):
        bench(tiny_package("plain"), prompt_tokens=4090, decoded_tokens=10)
