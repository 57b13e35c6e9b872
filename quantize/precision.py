"""Faster arithmetic for calibration, where the processor has it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch


def has_fast_products() -> bool:
    """Whether this processor multiplies bfloat16 matrices (AVX-512 BF16, AMX, SVE or NEON BF16) through oneDNN."""
    return torch.backends.mkldnn.is_available() and any(
        getattr(torch.cpu, name, bool)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    )


@contextmanager
def fast_products() -> Iterator[None]:
    """Let float32 matrix products round their factors to bfloat16 and add up in float32, where that is faster.

    On AMX they take a fifth of the time. A Gram matrix stays one, of inputs rounded to three digits; that is a
    hundredth of what int4 does to them (figures in NOTES.md). Not for what is solved or compared afterwards:
    factors, and errors that a method made small on purpose.
    """
    if not has_fast_products():
        yield
        return
    matmul = cast("Any", torch.backends.mkldnn).matmul  # made when the module is set up: pyright does not see it
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextmanager
def fast_layers() -> Iterator[None]:
    """Let linear layers and attention compute in bfloat16, as Phi-3 itself is published, where that is faster.

    Hidden states and norms stay float32.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_products()):
        yield
