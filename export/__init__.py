"""Export: from a checkpoint to a traced graph to a package on disk."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exporter import DEFAULT_SOURCE, ExportOptions, ExportPlan, export, plan_export, run_export
    from .sources.checkpoint import Checkpoint
    from .sources.open import open_checkpoint
    from .weights.calibration_data import CalibrationOptions

__all__ = [
    "DEFAULT_SOURCE",
    "CalibrationOptions",
    "Checkpoint",
    "ExportOptions",
    "ExportPlan",
    "export",
    "open_checkpoint",
    "plan_export",
    "run_export",
]

_HOMES = {
    "CalibrationOptions": "weights.calibration_data",
    "Checkpoint": "sources.checkpoint",
    "open_checkpoint": "sources.open",
}


def __getattr__(name: str) -> Any:
    # torch is imported with the first name that needs it: fetching a package from the hub does not.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES.get(name, 'exporter')}", __name__), name)
