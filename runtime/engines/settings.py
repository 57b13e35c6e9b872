"""What of an engine's settings suits a machine. But for a copy in int8, none changes a bit of what it computes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .padding import Trial
from .prepacked import MachineCopy

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
    copy: MachineCopy | None = None
    """A copy of `decode.onnx` that was made for this machine, for `together`."""
    trial: Trial | None = None
    """What trying `decode.onnx` out showed on this machine, for `together`."""


PLAIN = EngineSettings()
Suits = Callable[[EngineKind], EngineSettings]
"""Returns what suits an engine here."""
