"""An int8 KV cache: `GroupQueryAttention` quantizes what it appends and reads what is there, by scales of the graph."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .edit import CONTRIB, constant, nodes_of

_KEY_SCALE_AT, _VALUE_SCALE_AT = 12, 13
_HEADROOM = 1.2
"""Beyond what a short text showed, which other texts exceed: on the small real model it costs no KL (0.0057 either way,
on another text), and 1.5 costs a fifth."""


def quantize_cache(model: ir.Model, scales: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """Store keys and values in int8, symmetric, one scale a channel; return how many attention nodes that changed.

    Args:
        model: a graph of `pack_tokens`.
        scales: of keys and of values of each layer, float32 [KV heads, head size] each.

    """
    graph = model.graph
    nodes = list(nodes_of(model, "GroupQueryAttention", CONTRIB))
    for layer, (node, pair) in enumerate(zip(nodes, scales, strict=True)):
        for place, kind, scale in zip((_KEY_SCALE_AT, _VALUE_SCALE_AT), ("key", "value"), pair, strict=True):
            heads, size = scale.shape
            values = scale.astype(np.float32).reshape(1, heads, 1, size)
            node.replace_input_with(place, constant(model, f"cache_scale.{layer}.{kind}", values))
        for name in ("k_quant_type", "v_quant_type"):
            node.attributes[name] = ir.AttrString(name, "PER_CHANNEL")
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
    for value in (*graph.inputs, *graph.outputs):
        if value.name and value.name.startswith(("past_key_values.", "present.")):
            value.type = ir.TensorType(ir.DataType.INT8)
    return len(nodes)


def cache_scales(keys: np.ndarray, values: np.ndarray, rotary_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the scales of one layer's cache from the largest magnitudes seen.

    The rotation turns the two channels of a pair into each other with the position, so both get the larger one's scale.

    Args:
        keys: the largest magnitude of each channel, float32 [KV heads, head size], after the rotation.
        values: likewise.
        rotary_dim: how many of a head's channels are rotated; channel i turns with i + rotary_dim / 2.

    Returns:
        Scales of keys and of values, float32 [KV heads, head size].

    """
    half = rotary_dim // 2
    turned = keys.copy()
    turned[:, :half] = turned[:, half:rotary_dim] = np.maximum(keys[:, :half], keys[:, half:rotary_dim])
    return _scale(turned), _scale(values)


def _scale(magnitudes: np.ndarray) -> np.ndarray:
    # A channel that was always 0 still needs a scale, since attention divides by it.
    return np.maximum(magnitudes * (_HEADROOM / 127), 1e-8).astype(np.float32)
