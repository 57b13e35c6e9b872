"""Phi-3's norms and attention with torch's own arithmetic, for whole texts: no cache, no padding."""

import torch
from torch import Tensor
from torch.nn import functional

from ..configs import ModelConfig
from .rotary import rotary_tables


class ExactOperators:
    """What layers of `phi3` compute, in the dtype they are given; norms in float32."""

    def __init__(self, config: ModelConfig, tokens: int) -> None:
        """Prepare for texts of one length, on which rotary tables (LongRoPE's factors, too) and mask depend."""
        self._config = config
        self._cos, self._sin = rotary_tables(config, tokens)
        self._mask = _window_mask(config.sliding_window, tokens)

    def norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Return the RMS norm of hidden states [batch, tokens, hidden size], scaled by `weight` [hidden size]."""
        states = hidden.float()
        states = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + self._config.rms_norm_eps)
        return weight * states.to(hidden.dtype)

    def attention(self, qkv: Tensor) -> Tensor:
        """Rotate queries and keys and attend; shapes as in `phi3.Operators`."""
        config = self._config
        states = qkv.unflatten(-1, (-1, config.head_dim)).transpose(1, 2)  # [batch, heads of all, tokens, head size]
        query, key, value = states.split((config.num_heads, config.num_kv_heads, config.num_kv_heads), dim=1)
        # Its fused kernel never holds a head's whole score matrix, 2 GB for 32 heads of 4,096 tokens.
        attended = functional.scaled_dot_product_attention(
            self._rotate(query),
            self._rotate(key),
            value,
            attn_mask=self._mask,
            is_causal=self._mask is None,
            enable_gqa=config.num_heads != config.num_kv_heads,
        )
        return attended.transpose(1, 2).flatten(2)

    def _rotate(self, states: Tensor) -> Tensor:
        rotary_dim = self._config.rotary_dim
        rotated, rest = states[..., :rotary_dim], states[..., rotary_dim:]
        first, second = rotated.chunk(2, dim=-1)
        turned = (first * self._cos - second * self._sin, second * self._cos + first * self._sin)
        return torch.cat((*turned, rest), dim=-1)


def _window_mask(window: int | None, tokens: int) -> Tensor | None:
    """Return which position (rows) attends to which (columns); None where that is to itself and all before it."""
    if window is None or tokens <= window:
        return None
    positions = torch.arange(tokens)
    distance = positions[:, None] - positions[None]
    return (distance >= 0) & (distance < window)
