"""The packages that the dry run goes through: one checkpoint of random weights for each kind of graph."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phi3_onnx.export import export

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from conftest import write_tiny

TARGETS = ("cuda-fp16", "cuda-int4-rtn")

_PHI3: Mapping[str, Any] = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
_SMALL: Mapping[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "rope_theta": 100000.0,
}
_PAIRS = 48
"""Rotary pairs of Phi-3: a head of 96."""

# Nothing is computed in a dry run, so shapes are all that matters: layers and vocabularies are small.
KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "small": ("llama", _SMALL),
    "phi3-4k": ("plain", {**_PHI3, "sliding_window": 2047}),
    "phi3-128k": (
        "longrope",
        {
            **_PHI3,
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0 + i / _PAIRS for i in range(_PAIRS)],
                "long_factor": [1.0 + i for i in range(_PAIRS)],
            },
        },
    ),
    "gqa": ("gqa", {}),
    "partial": ("partial", {}),
    "tied": ("tied", {}),
    "ragged": ("ragged", {}),
}
"""Name -> kind of tiny checkpoint (tests/conftest.py), and what of it is changed. "small" has the shape of the small
real model, two layers of it; "phi3-" one layer of Phi-3-mini's."""


def make_package(kind: str, target: str, folder: Path) -> Path:
    """Return the package of a kind for a target, exported into `folder`."""
    base, overrides = KINDS[kind]
    checkpoint = folder / kind
    if not checkpoint.exists():
        write_tiny(checkpoint, base, dtype="float16", **overrides)
    return export(checkpoint, target, folder / f"{kind}-{target}")
