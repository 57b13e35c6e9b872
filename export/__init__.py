"""Export: from a checkpoint to a traced graph to a package on disk."""

from .checkpoint import Checkpoint
from .exporter import DEFAULT_SOURCE, Plan, export, plan_export, run_export
from .open import open_checkpoint

__all__ = ["DEFAULT_SOURCE", "Checkpoint", "Plan", "export", "open_checkpoint", "plan_export", "run_export"]
