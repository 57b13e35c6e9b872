"""A target whose decoder matrices get bits by what each costs in quality, within a number of bytes."""

from dataclasses import replace

from ...configs import Target, WeightScheme, requantized
from ...configs.progress import Progress, silent
from ...quantize.budget import measure_costs, parse_budget, within_budget
from ..sources.checkpoint import Checkpoint
from .blocks import fit_blocks
from .calibration_data import Calibration
from .layout import plan_layout

_SAMPLES = 4
"""Calibration sequences that costs are measured on: two thousand tokens of the default length."""


def fit_budget(
    checkpoint: Checkpoint,
    target: Target,
    budget: str,
    calibration: Calibration,
    progress: Progress = silent,
) -> Target:
    """Return the target with a scheme of its own for each decoder matrix, so that the package keeps to the budget.

    The target gets the name of a variant, since what fits depends on the model and on the text.

    Each matrix is tried with the target's scheme, with smaller blocks of 32 weights, and with 8 bits.

    Args:
        checkpoint: The model.
        target: Quantized; its scheme is the start, and its overrides (head, embedding) stay.
        budget: `6.0bpw` (bits per weight, over all weights) or `105MB` (the whole data file).
        calibration: Some of its sequences are what costs are measured on.
        progress: Called with "measuring" and its layers.

    Raises:
        UsageError: the budget is malformed or too small.

    """
    assert target.quantization is not None
    asked = parse_budget(budget, checkpoint.config.num_parameters)
    base = target.quantization.weights
    schemes: list[WeightScheme] = []
    for scheme in (base, replace(base, block_size=min(base.block_size, 32)), replace(base, bits=8)):
        if scheme not in schemes:
            schemes.append(scheme)
    costs = measure_costs(
        checkpoint.config,
        checkpoint.read,
        # Spread over all texts: samples lie in the order of the texts, and the first ones are all code.
        calibration.samples[:: max(1, len(calibration.samples) // _SAMPLES)][:_SAMPLES],
        schemes,
        target.io_dtype,
        lambda done, total: progress("measuring", done, total, "layers"),
    )
    # What lies in the file beside weights (rotary tables, padding up to pages) is known once schemes are chosen.
    limit = asked.num_bytes
    while True:
        chosen = within_budget(checkpoint.config, target.quantization, costs, target.io_dtype, limit)
        fitted = requantized(target, replace(chosen, budget=asked.text))
        layout = plan_layout(checkpoint.config, fit_blocks(checkpoint.config, fitted)[0])
        excess = (layout.num_bytes if asked.whole_file else layout.weight_bytes) - asked.num_bytes
        if excess <= 0:
            return fitted
        limit -= excess
