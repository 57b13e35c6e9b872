"""Export: from a checkpoint to a traced graph to a package on disk."""

from .calibration import CalibrationOptions
from .checkpoint import Checkpoint
from .exporter import DEFAULT_SOURCE, Plan, export, plan_export, run_export
from .open import open_checkpoint

__all__ = [
    "DEFAULT_SOURCE",
    "CalibrationOptions",
    "Checkpoint",
    "Plan",
    "export",
    "open_checkpoint",
    "plan_export",
    "run_export",
]
