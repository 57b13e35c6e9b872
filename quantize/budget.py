"""More bits where they help most: from what each matrix costs in quality at each scheme, to schemes within a budget."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..configs import ModelConfig, Quantization, UsageError, WeightScheme
from ..configs.sizes import size
from ..configs.target import IoDtype
from .calibrate import Progress, Read, embed_samples
from .decoder_layer import LINEARS, DecoderLayers
from .packed import packed_shapes
from .rounding import column_importance, round_matrix

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Option:
    """One way to store a matrix."""

    scheme: WeightScheme
    num_bytes: int
    cost: float
    """What it costs in quality, in any unit that is the same for all matrices."""


@dataclass(frozen=True)
class Budget:
    """What a package may take."""

    num_bytes: int
    whole_file: bool
    """Whether all of the data file counts (`105MB`), or weights alone (`6.0bpw`)."""
    text: str
    """As it was asked for, in one spelling: `6bpw`, `105mb`."""


def parse_budget(text: str, num_parameters: int) -> Budget:
    """Return what a budget such as `6.0bpw` (bits per weight) or `105MB` allows.

    Raises:
        UsageError: the text is neither.

    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
    number, unit = (float(match[1]), match[2]) if match else (0.0, "")
    if number > 0 and unit == "bpw":
        return Budget(int(number * num_parameters / 8), whole_file=False, text=f"{number:.12g}{unit}")
    if number > 0 and unit in _UNITS:
        return Budget(int(number * _UNITS[unit]), whole_file=True, text=f"{number:.12g}{unit}")
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
        raise UsageError(
            f"the budget leaves {size(max(budget, 0))} for the decoder layers, which take {size(budget - left)} "
            "at the least; raise --budget"
        )
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


def measure_costs(
    config: ModelConfig,
    read: Read,
    samples: np.ndarray,
    schemes: Sequence[WeightScheme],
    scale_dtype: IoDtype,
    progress: Progress | None = None,
) -> dict[str, dict[WeightScheme, float]]:
    """Measure what each scheme costs for each decoder matrix, a layer at a time.

    The cost is how far a token's hidden state after the layer moves when this matrix alone is rounded: the squared
    distance as a share of the state's squared length, averaged over tokens. On the small real model the KL divergence
    that a matrix causes is about four times this number, for matrices of all kinds and at all depths (NOTES.md).

    Args:
        config: The model.
        read: Gives the checkpoint's tensors.
        samples: Token ids [samples, tokens]; two thousand tokens are plenty.
        schemes: Schemes to measure.
        scale_dtype: Dtype in which scales will be stored.
        progress: Called before the first layer and after each.

    """
    layers = DecoderLayers(config)
    states = np.empty((*samples.shape, config.hidden_size), np.float32)
    embed_samples(config, read, samples, states)
    hidden = torch.from_numpy(states)
    operators = layers.operators(hidden.shape[1])
    costs: dict[str, dict[WeightScheme, float]] = {}
    report = progress or (lambda _done, _total: None)
    report(0, config.num_layers)
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        layers.forget_weights()
        weights = {name: torch.from_numpy(read(prefix + name, None)) for name in layers.weight_names}
        grams: dict[str, Tensor] = {}

        def see(name: str, inputs: Tensor, grams: dict[str, Tensor] = grams) -> None:
            grams[name] = inputs.T @ inputs / len(inputs)

        layers.set_weights(weights)
        exact = layers.run(hidden, operators, see)
        power = exact.square().sum(-1).clamp_min(1e-30)
        for name in LINEARS:
            weight = weights[f"{name}.weight"]
            each: dict[WeightScheme, float] = {}
            for scheme in schemes:
                rounded = round_matrix(weight, scheme, scale_dtype, column_importance(grams[name]))
                layers.set_weights({**weights, f"{name}.weight": rounded.dequantize()})
                moved = layers.run(hidden, operators) - exact
                each[scheme] = float((moved.square().sum(-1) / power).mean())
            costs[f"{prefix}{name}.weight"] = each
        hidden = exact
        report(index + 1, config.num_layers)
    return costs
