"""Which norms a provider's float16 arithmetic is too small for, by what calibration measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...configs import ModelConfig, Target

_MARGIN = 4.0
"""Other texts may hold larger values than the calibration's: rows of up to twice its peaks stay in float16."""


@dataclass(frozen=True)
class WideNorms:
    """The norms that are computed in float32."""

    weights: tuple[str, ...]
    """The checkpoint's names of their weights."""
    limit: float
    mean_squares: Mapping[str, float]
    """The largest mean square of a row that was measured at each norm; empty where nothing was calibrated."""

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says."""
        measured = {name: float(f"{value:.4g}") for name, value in self.mean_squares.items()}
        return {"float32": list(self.weights), "limit": self.limit, "margin": _MARGIN, "mean_squares": measured}


def wide_norms(config: ModelConfig, target: Target, measured: Mapping[str, float]) -> WideNorms | None:
    """Return the norms that may see rows beyond the target's limit; None where it has none.

    Args:
        config: The model.
        target: Its `norm_limit` counts.
        measured: Norm weight -> largest mean square of its inputs' rows. A norm that is missing may see anything.

    """
    if target.norm_limit is None:
        return None
    norms = [name for name, shape in config.tensor_shapes().items() if len(shape) == 1]
    wide = [name for name in norms if measured.get(name, float("inf")) * _MARGIN > target.norm_limit]
    return WideNorms(tuple(wide), target.norm_limit, dict(measured))
