"""The transformers configuration of a model, built without the advice that transformers prints for old spellings."""

import logging
from typing import Any, cast

from transformers import Phi3Config

from ..configs import ModelConfig


def phi3_config(config: ModelConfig) -> Phi3Config:
    """Return `config` as transformers' own configuration object."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_rope_utils", "configuration_utils")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        return Phi3Config(**cast("dict[str, Any]", config.to_phi3()))
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
