"""More bits where they help most: from what each matrix costs in quality at each scheme, to schemes within a budget."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..configs import ModelConfig, Quantization, UsageError, WeightScheme
from ..configs.target import IoDtype
from .calibrate import LinearInput
from .decoder_layer import LINEARS
from .packed import packed_shapes
from .rounding import column_importance, output_error, round_matrix

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Option:
    """One way to store a matrix."""

    scheme: WeightScheme
    num_bytes: int
    cost: float
    """What it costs in quality, in any unit that is the same for all matrices."""


def parse_budget(text: str, num_parameters: int) -> int:
    """Return the bytes that a budget such as `6.0bpw` (bits per weight) or `105MB` allows.

    Raises:
        UsageError: the text is neither.

    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
    number, unit = (float(match[1]), match[2]) if match else (0.0, "")
    if number > 0 and unit == "bpw":
        return int(number * num_parameters / 8)
    if number > 0 and unit in _UNITS:
        return int(number * _UNITS[unit])
    raise UsageError(f"a budget must look like 6.0bpw or 105MB, got {text!r}")


def allocate(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """Choose one option for each matrix, so that the sum of costs is small and all fit into `budget` bytes.

    Each starts with its smallest option; then, again and again, the step that saves the most cost per byte is taken
    among those that still fit.

    Raises:
        UsageError: not even the smallest options fit.

    """
    chosen = {name: min(each, key=lambda option: option.num_bytes) for name, each in options.items()}
    left = budget - sum(option.num_bytes for option in chosen.values())
    if left < 0:
        least = (budget - left) / 1e6
        raise UsageError(f"{budget / 1e6:.1f} MB for the decoder layers: the least is {least:.1f} MB; raise --budget")
    while True:
        best_rate, best = 0.0, None
        for name, each in options.items():
            now = chosen[name]
            for option in each:
                more = option.num_bytes - now.num_bytes
                if 0 < more <= left and (rate := (now.cost - option.cost) / more) > best_rate:
                    best_rate, best = rate, (name, option)
        if best is None:
            return chosen
        name, option = best
        left -= option.num_bytes - chosen[name].num_bytes
        chosen[name] = option


def within_budget(
    config: ModelConfig,
    quantization: Quantization,
    costs: Mapping[str, Mapping[WeightScheme, float]],
    scale_dtype: IoDtype,
    budget: int,
) -> Quantization:
    """Return the same quantization with a scheme for each decoder matrix, so that all weights fit into `budget` bytes.

    Args:
        config: The model.
        quantization: What every other tensor (head and embedding) follows.
        costs: Decoder matrix (such as `model.layers.0.mlp.down_proj.weight`) -> scheme -> cost.
        scale_dtype: Dtype in which scales and norms are stored.
        budget: Bytes for all weights: codes, scales, zero points, norms.

    Raises:
        UsageError: the budget is too small.

    """
    scale_bytes = 4 if scale_dtype == "float32" else 2
    fixed = 0
    options: dict[str, list[Option]] = {}
    for name, shape in config.tensor_shapes().items():
        if len(shape) == 1:
            fixed += shape[0] * scale_bytes
        elif name in costs:
            options[name] = [
                Option(scheme, packed_shapes(shape[0], shape[1], scheme).num_bytes(scale_bytes), cost)
                for scheme, cost in costs[name].items()
            ]
        else:
            shapes = packed_shapes(shape[0], shape[1], quantization.scheme_for(name))
            fixed += shapes.num_bytes(scale_bytes)
    chosen = allocate(options, budget - fixed)
    # Before the target's own overrides: the first match wins.
    schemes = tuple((name, option.scheme) for name, option in chosen.items())
    return replace(quantization, overrides=schemes + quantization.overrides)


def layer_costs(
    prefix: str,
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, LinearInput],
    schemes: Sequence[WeightScheme],
    scale_dtype: IoDtype,
) -> dict[str, dict[WeightScheme, float]]:
    """Measure what each scheme costs for each matrix of a decoder layer: the share of its output's power that is lost.

    Args:
        prefix: The layer's prefix in the checkpoint, `model.layers.3.`.
        weights: float32, by names such as `mlp.down_proj.weight`.
        inputs: What its linear layers see, by names such as `mlp.down_proj`.
        schemes: Schemes to measure.
        scale_dtype: Dtype in which scales will be stored.

    """
    costs: dict[str, dict[WeightScheme, float]] = {}
    for name in LINEARS:
        weight, gram = weights[f"{name}.weight"], inputs[name].gram
        power = max(output_error(weight, gram), torch.finfo(torch.float32).tiny)
        costs[f"{prefix}{name}.weight"] = {
            scheme: output_error(
                weight - round_matrix(weight, scheme, scale_dtype, column_importance(gram)).dequantize(), gram
            )
            / power
            for scheme in schemes
        }
    return costs
