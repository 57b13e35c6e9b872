"""Quantize the linear layers of a Phi-3 decoder layer by the method that a target names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..configs import ModelConfig, Quantization, WeightScheme
from ..configs.target import IoDtype
from .awq import Scaling, scale_gram, search_scaling
from .calibrate import LayerQuantizer, LinearInput, QuantizedLayer
from .decoder_layer import LINEARS
from .gptq import gptq
from .packed import QuantizedWeight
from .precision import fast_products
from .rounding import Rounded, column_importance, output_error, round_matrix

_QKV, _OUT, _GATE_UP, _DOWN = LINEARS
_INPUT_NORM, _POST_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"

# Rows of a matrix that the search for AWQ's scales looks at: evenly spread ones, the same for every ratio. One ratio
# costs about as much as a forward pass of K tokens. Of the small real model only gate and up have more.
_SEARCHED_ROWS = 1024


def layer_quantizer(config: ModelConfig, quantization: Quantization, scale_dtype: IoDtype) -> LayerQuantizer:
    """Return what quantizes the linear layers of a decoder layer, each by its own scheme.

    Methods: `imatrix` (rounding on grids fitted to errors weighted by the inputs' mean squares, llama.cpp's importance
    matrix), `awq` (scales, then rounding on such grids), `gptq`, `awq+gptq` (GPTQ on scaled weights),
    and `rtn` (rounding alone: the yardstick).
    """
    return _LayerQuantizer(config, quantization, scale_dtype)


class _LayerQuantizer:
    def __init__(self, config: ModelConfig, quantization: Quantization, scale_dtype: IoDtype) -> None:
        self._config = config
        self._quantization = quantization
        self._scale_dtype: IoDtype = scale_dtype
        self._stages = quantization.method.split("+")

    def __call__(self, prefix: str, weights: Mapping[str, Tensor], inputs: Mapping[str, LinearInput]) -> QuantizedLayer:
        scaled = dict(weights)
        scalings = self._scale(prefix, scaled, inputs) if "awq" in self._stages else {}
        matrices: dict[str, QuantizedWeight] = {}
        reports: dict[str, dict[str, Any]] = {}
        for name in LINEARS:
            key = f"{name}.weight"
            seen, scaling = inputs[name], scalings.get(name)
            gram = seen.gram if scaling is None else scale_gram(seen.gram, scaling.scale)
            weight = scaled.pop(key)
            cost = self._cost(gram)
            choice = self._best(weight, gram, cost, self._quantization.scheme_for(prefix + key))
            matrices[key] = choice.rounded.pack()
            reports[key] = self._report(choice, weight, scaling, cost if scaling is None else self._cost(seen.gram))
        norms = {name: scaled[name].numpy() for name in (_INPUT_NORM, _POST_NORM)}
        return QuantizedLayer(matrices, norms, reports)

    def _scale(self, prefix: str, weights: dict[str, Tensor], inputs: Mapping[str, LinearInput]) -> dict[str, Scaling]:
        """Search AWQ's scales of each linear layer's inputs, and fold them into what comes before."""
        config = self._config
        found: dict[str, Scaling] = {}

        def search(name: str, mean_abs: Tensor) -> Scaling:
            key = f"{name}.weight"
            rounding = self._rounding(self._quantization.scheme_for(prefix + key))
            rows = _spread_rows(weights[key], _SEARCHED_ROWS)
            with fast_products():
                return search_scaling([rows], inputs[name].gram, mean_abs, rounding)

        def apply(name: str, scaling: Scaling) -> None:
            weights[f"{name}.weight"] = weights[f"{name}.weight"] * scaling.scale
            found[name] = scaling

        for name, norm in ((_QKV, _INPUT_NORM), (_GATE_UP, _POST_NORM)):
            scaling = search(name, inputs[name].mean_abs)
            weights[norm], scale = _fold_norm(weights[norm], scaling.scale, self._scale_dtype)
            apply(name, Scaling(scale, scaling.ratio, scaling.gain))
        # llm-awq leaves this one out where several heads share a value head.
        scaling = search(_OUT, self._by_value_head(inputs[_OUT].mean_abs).flatten())
        # All heads of a group have the scales of the value head that they share.
        per_value = scaling.scale.view(config.num_kv_heads, -1, config.head_dim)[:, 0].reshape(-1)
        weights[f"{_QKV}.weight"] = _divide_last_rows(weights[f"{_QKV}.weight"], per_value)
        apply(_OUT, scaling)
        scaling = search(_DOWN, inputs[_DOWN].mean_abs)
        weights[f"{_GATE_UP}.weight"] = _divide_last_rows(weights[f"{_GATE_UP}.weight"], scaling.scale)
        apply(_DOWN, scaling)
        return found

    def _by_value_head(self, mean_abs: Tensor) -> Tensor:
        """Return the mean over the heads that share a value head, [value heads, heads of each, head dim]."""
        groups = mean_abs.view(self._config.num_kv_heads, -1, self._config.head_dim)
        return groups.mean(1, keepdim=True).expand_as(groups)

    def _rounding(self, scheme: WeightScheme) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda weight, gram: round_matrix(
            weight, scheme, self._scale_dtype, column_importance(gram)
        ).dequantize()

    def _cost(self, gram: Tensor) -> Callable[[Tensor], float]:
        """Return what tells how much a difference of weights [N, K] costs: the error of the outputs.

        For `imatrix` that of uncorrelated inputs, which takes seconds less and is what its grids are fitted to.
        """
        if self._quantization.method == "imatrix":
            importance = column_importance(gram)
            return lambda difference: float((difference.square().sum(0, dtype=torch.float64) * importance).sum())
        return lambda difference: output_error(difference, gram)

    def _best(self, weight: Tensor, gram: Tensor, cost: Callable[[Tensor], float], scheme: WeightScheme) -> "_Choice":
        """Quantize a (scaled) matrix; where the method does not beat rounding, rounding is kept."""
        rounded = round_matrix(weight, scheme, self._scale_dtype)
        plain = cost(weight - rounded.dequantize())
        best = _Choice("rtn", rounded, plain, plain)
        if self._quantization.method == "rtn":
            return best
        if "gptq" in self._stages:
            tried = gptq(weight, gram, scheme, self._scale_dtype)
        else:
            tried = round_matrix(weight, scheme, self._scale_dtype, column_importance(gram), "thorough")
        error = cost(weight - tried.dequantize())
        return _Choice(self._quantization.method, tried, error, plain) if error < plain else best

    def _report(
        self, choice: "_Choice", weight: Tensor, scaling: Scaling | None, cost: Callable[[Tensor], float]
    ) -> dict[str, Any]:
        """Say what was done to a matrix; errors are those of its unscaled columns, ratios are to plain rounding."""
        difference, plain_error = weight - choice.rounded.dequantize(), choice.plain_error
        if scaling is not None:
            difference /= scaling.scale
            weight = weight / scaling.scale
            plain_error = cost(weight - round_matrix(weight, choice.rounded.scheme, self._scale_dtype).dequantize())
        report: dict[str, Any] = {
            "method": self._quantization.method,
            "kept": choice.kept,
            "relative_error": _significant(float(difference.norm() / weight.norm().clamp_min(1e-30))),
            "error_ratio": _significant(choice.error / plain_error) if plain_error else 1.0,
        }
        if scaling is not None:
            report |= {"awq_ratio": scaling.ratio, "awq_gain": _significant(scaling.gain)}
        return report


@dataclass(frozen=True, eq=False)
class _Choice:
    kept: str
    rounded: Rounded
    error: float
    plain_error: float
    """What rounding of the same (scaled) weights costs."""


def _spread_rows(weight: Tensor, most: int) -> Tensor:
    if len(weight) <= most:
        return weight
    return weight[torch.linspace(0, len(weight) - 1, most, dtype=torch.float64).long()]


def _fold_norm(norm: Tensor, scale: Tensor, dtype: IoDtype) -> tuple[Tensor, Tensor]:
    """Return norm / scale as the graph will store it, and the scale that this is exactly."""
    folded = norm / scale
    if dtype == "float32":
        return folded, scale
    folded = folded.half().float()
    exact = norm / folded
    return folded, torch.where(exact.isfinite() & (exact > 0), exact, scale)


def _divide_last_rows(weight: Tensor, scale: Tensor) -> Tensor:
    """Divide the last rows by `scale`: in the fused matrices V and up are the last ones."""
    result = weight.clone()
    result[-len(scale) :] /= scale[:, None]
    return result


def _significant(value: float) -> float:
    return float(f"{value:.4g}")
