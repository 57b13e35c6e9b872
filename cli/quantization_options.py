"""The options of `export` and `quantize` that say how weights are quantized, and on which text."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..configs import METHODS, find_target, with_quantization
from ..configs.target import BLOCK_SIZES

if TYPE_CHECKING:
    from ..configs import Target
    from ..export import CalibrationOptions

_Function = TypeVar("_Function", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--quant", "method", type=click.Choice(METHODS), help="Method, in place of the target's."),
    click.option("--bits", type=click.Choice(["4", "8"]), help="Bits of a weight."),
    click.option("--block-size", type=click.Choice([str(n) for n in BLOCK_SIZES]), help="Weights that share a scale."),
    click.option("--budget", help="Mix schemes by what each matrix costs, within 6.0bpw of weights, or 105MB of data."),
    click.option("--symmetric/--asymmetric", default=None, help="Without or with zero points."),
    click.option(
        "--calibration",
        "text",
        type=click.Path(path_type=Path),
        help='Text for calibrated methods: .txt, or .jsonl with "text" or "messages".  [default: built in]',
    ),
    click.option("--num-samples", type=click.IntRange(1), help="Sequences to draw.  [default: 128; imatrix: 16]"),
    click.option("--sequence-length", type=click.IntRange(1), default=512, show_default=True, help="Tokens of each."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the draw of sequences."),
)


def quantization_options(function: _Function) -> _Function:
    """Add the options to a command; `chosen_target` and `calibration_options` take their values."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def chosen_target(name: str, values: dict[str, Any]) -> "Target":
    """Return the target of this name, quantized as the options say."""
    return with_quantization(
        find_target(name),
        method=values["method"],
        bits=int(values["bits"]) if values["bits"] else None,
        block_size=int(values["block_size"]) if values["block_size"] else None,
        symmetric=values["symmetric"],
    )


def calibration_options(values: dict[str, Any]) -> "CalibrationOptions":
    """Return what the options say of the calibration text."""
    from ..export import CalibrationOptions

    return CalibrationOptions(
        text=values["text"],
        num_samples=values["num_samples"],
        sequence_length=values["sequence_length"],
        seed=values["seed"],
    )
