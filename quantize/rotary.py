"""The rotary embedding's cosines and sines, with LongRoPE's factors (arXiv:2402.13753)."""

import torch
from torch import Tensor

from ..configs import ModelConfig
from ..configs.model import own_attention_factor


def rotary_tables(config: ModelConfig, tokens: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the positions 0, 1, ... of a text, each float32 [tokens, rotary_dim / 2].

    With LongRoPE the length of the whole text decides: it takes the short factors up to the original context, and the
    long ones for all of its positions if it is longer.
    """
    frequencies = config.rope_theta ** (torch.arange(0, config.rotary_dim, 2).float() / config.rotary_dim)
    scale = 1.0
    if (rope := config.longrope) is not None:
        factors = rope.short_factor if tokens <= rope.original_max_position else rope.long_factor
        frequencies = torch.tensor(factors) * frequencies
        scale = rope.attention_factor
        if scale is None:
            scale = own_attention_factor(config.max_position / rope.original_max_position, rope.original_max_position)
    angles = torch.arange(tokens).float()[:, None] * (1.0 / frequencies)
    return angles.cos() * scale, angles.sin() * scale
