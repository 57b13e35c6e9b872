"""Rewrites of the traced graph, each a small function that returns how many places it changed."""

from .conditions import interface_named, no_linear_layers, no_sequence_splits, norms_fused, weights_folded
from .contract import name_interface
from .last_token import slice_last_token
from .linear import fold_weight_transposes
from .projections import ROWS_OF, split_projections
from .quantized import quantize_weights
from .rewrite import PassError, Rewrite, run_passes
from .skip_norm import fuse_skip_norms
from .splits import replace_sequence_splits
from .tidy import tidy
from .wide_norms import widen_norms

__all__ = [
    "ROWS_OF",
    "PassError",
    "Rewrite",
    "fold_weight_transposes",
    "fuse_skip_norms",
    "interface_named",
    "name_interface",
    "no_linear_layers",
    "no_sequence_splits",
    "norms_fused",
    "quantize_weights",
    "replace_sequence_splits",
    "run_passes",
    "slice_last_token",
    "split_projections",
    "tidy",
    "weights_folded",
    "widen_norms",
]
