"""Our Phi-3 in torch against transformers' own, in float32, on every kind of shape."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers
from phi3_onnx.configs import ModelConfig, parse_model_config
from phi3_onnx.quantize.exact import ExactOperators
from phi3_onnx.quantize.phi3 import Phi3
from transformers import Phi3Config, Phi3ForCausalLM

# Weights are random and logits of size 3; float32 sums in another order differ by some 1e-6.
TOLERANCE = 1e-5
BASE: dict[str, Any] = {
    "model_type": "phi3",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "original_max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}


def longrope(pairs: int, **more: Any) -> dict[str, Any]:
    short = [1 + 0.25 * i / pairs for i in range(pairs)]
    return {"type": "longrope", "short_factor": short, "long_factor": [1.5 + 2 * x for x in short], **more}


LONG = {"max_position_embeddings": 256, "original_max_position_embeddings": 40}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped heads": {"num_key_value_heads": 2},
    "one key/value head": {"num_key_value_heads": 1},
    "heads wider than the model": {"head_dim": 24, "num_key_value_heads": 2},
    "window": {"sliding_window": 7},
    "window and grouped heads": {"sliding_window": 40, "num_key_value_heads": 2},
    "partial": {"partial_rotary_factor": 0.5},
    "tied": {"tie_word_embeddings": True},
    "another theta and epsilon": {"rope_theta": 500000.0, "rms_norm_eps": 1e-2},
    "longrope": {**LONG, "rope_scaling": longrope(8)},
    "longrope within its original context": {
        "original_max_position_embeddings": 128,
        "rope_scaling": longrope(8),
    },
    "longrope with a stated factor": {**LONG, "rope_scaling": longrope(8, attention_factor=1.3)},
    # Heads shared, three quarters of each head rotated, tied, LongRoPE: all that Phi-4-mini has.
    "Phi-4-mini": {
        **LONG,
        "num_attention_heads": 6,
        "hidden_size": 96,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.75,
        "tie_word_embeddings": True,
        "rope_scaling": longrope(6),
        "sliding_window": 262144,
    },
}


def models(changes: Mapping[str, Any]) -> tuple[ModelConfig, Phi3, Phi3ForCausalLM]:
    """Return our model and transformers', with the same weights, which are all of either's."""
    table = {**BASE, **changes}
    if "attention_factor" in table.get("rope_scaling", {}) and transformers.__version__ < "5":
        pytest.skip("transformers 4 refuses a rope_scaling of more than three fields")
    torch.manual_seed(0)
    # A copy, since it writes into what it is given.
    theirs = Phi3ForCausalLM(Phi3Config(**deepcopy(table))).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("norm.weight"):
                parameter.normal_(1, 0.2)
            else:
                parameter.normal_(
                    0, (9 if "lm_head" in name or "embed" in name else 1) ** 0.5 * table["hidden_size"] ** -0.5
                )
    config = parse_model_config(table)
    ours = Phi3(config)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    return config, ours, theirs


@torch.inference_mode()
def difference(changes: Mapping[str, Any], tokens: int, alter: Mapping[str, Any] | None = None) -> float:
    """Return the largest difference of logits over a batch of two texts; `alter` changes our side's config alone."""
    config, ours, theirs = models(changes)
    if alter:
        config = parse_model_config({**BASE, **changes, **alter})
    ids = torch.randint(0, BASE["vocab_size"], (2, tokens), generator=torch.Generator().manual_seed(1))
    return float((ours(ids, ExactOperators(config, tokens)) - theirs(input_ids=ids).logits).abs().max())


@pytest.mark.parametrize("tokens", [1, 2, 39, 40, 41, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_transformers(shape: str, tokens: int) -> None:
    assert difference(SHAPES[shape], tokens) < TOLERANCE


@pytest.mark.parametrize(
    ("shape", "alter"),
    [
        ("window", {"sliding_window": 8}),
        ("another theta and epsilon", {"rope_theta": 400000.0}),
        ("another theta and epsilon", {"rms_norm_eps": 1e-5}),
        ("longrope", {"original_max_position_embeddings": 41}),
        ("longrope with a stated factor", {"rope_scaling": longrope(8, attention_factor=1.31)}),
    ],
)
def test_what_the_shapes_differ_in_shows_in_the_logits(shape: str, alter: dict[str, Any]) -> None:
    # Or the comparison above would prove little.
    assert difference(SHAPES[shape], 41, alter) > 100 * TOLERANCE


@pytest.mark.parametrize("shape", ["plain", "tied", "heads wider than the model"])
def test_parameters_are_the_checkpoints(shape: str) -> None:
    config = parse_model_config({**BASE, **SHAPES[shape]})
    found = {name: tuple(parameter.shape) for name, parameter in Phi3(config).named_parameters()}
    assert found == config.tensor_shapes()
    assert all(parameter.is_meta for parameter in Phi3(config).parameters())
