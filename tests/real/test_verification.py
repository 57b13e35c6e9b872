"""The small real model in float32 is PyTorch's model: in its logits, and in 200 greedy tokens of five chats."""

from pathlib import Path

import pytest
from phi3_onnx.evaluate.parity.verify import verify
from phi3_onnx.export import open_checkpoint

pytestmark = pytest.mark.real


def test_float32_is_the_model(small_gguf: Path, small_package: Path) -> None:
    checkpoint = open_checkpoint(small_gguf)
    found = verify(small_package, checkpoint, steps=200)
    assert found.failures == ()
    assert found.metrics.positions >= 2048
    # Measured 1e-11, which is float32 rounding: logits differ by up to 2e-4.
    assert found.metrics.mean_kl < 1e-8
    assert found.metrics.package.mean_nll == pytest.approx(found.metrics.reference.mean_nll, abs=1e-5)
    assert found.rows[-1].detail.startswith("1000 of 1000 tokens, 5 of 5 answers identical")
