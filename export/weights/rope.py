"""The rotary embedding's tables of cosines and sines, as the graph holds them."""

import numpy as np

from ...configs import ModelConfig


def table_length(config: ModelConfig) -> int:
    """Return the rows of `rope_tables`: one a position, and with LongRoPE the short factors' rows before the long's."""
    if config.longrope and config.max_position > config.longrope.original_max_position:
        return config.longrope.original_max_position + config.max_position
    return config.max_position


def switches_factors(config: ModelConfig) -> bool:
    """Whether this model's tables depend on the total length (LongRoPE with a context beyond the original one)."""
    return table_length(config) > config.max_position


def rope_tables(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return cos and sin, each float32 [table_length(config), rotary_dim / 2].

    With LongRoPE the first `original_max_position` rows hold the short factors' values for positions 0, 1, ..., and
    the rows after them the long factors' values, again from position 0 on.
    """
    if not switches_factors(config):
        return _tables(config, config.max_position)
    assert config.longrope is not None
    short = _tables(config, config.longrope.original_max_position)
    long = _tables(config, config.max_position)
    return np.concatenate([short[0], long[0]]), np.concatenate([short[1], long[1]])


def _tables(config: ModelConfig, length: int) -> tuple[np.ndarray, np.ndarray]:
    from ...quantize.rotary import rotary_tables  # needs torch, which those who ask for `table_length` may do without

    cos, sin = rotary_tables(config, length)
    return cos.numpy(), sin.numpy()
