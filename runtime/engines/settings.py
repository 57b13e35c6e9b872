"""What of an engine's settings suits a machine, and changes no bit of what the engine computes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .padding import Trial

EngineKind = Literal["genai", "together", "onnxruntime"]
"""Which engine: GenAI, plain ONNX Runtime with `decode.onnx`, or with `model.onnx`."""


@dataclass(frozen=True)
class EngineSettings:
    """Settings of one engine; None and what is empty stand for its own."""

    threads: int | None = None
    """Threads of one operator."""
    prefill_chunk: int | None = None
    """Tokens of a prompt to run at a time."""
    step_seconds: Mapping[int, float] = field(default_factory=dict)
    """What a step of so many tokens takes, which `together` weighs drafts by."""
    prepacked: Path | None = None
    """A copy of `decode.onnx` that was laid out for this machine, for `together`."""
    trial: Trial | None = None
    """What trying `decode.onnx` out showed on this machine, for `together`."""


PLAIN = EngineSettings()
Suits = Callable[[EngineKind], EngineSettings]
"""Returns what suits an engine here."""
