"""The architecture, read from a `config.json` of any age."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.configs import SourceError, parse_model_config
from phi3_onnx.configs.model import own_attention_factor

BASE: Mapping[str, Any] = {
    "model_type": "phi3",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 7,
}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def test_sizes_and_parameters() -> None:
    config = parse_model_config(BASE)
    assert (config.head_dim, config.rotary_dim, config.qkv_size) == (16, 16, 128)
    shapes = config.tensor_shapes()
    assert shapes["model.layers.1.self_attn.qkv_proj.weight"] == (128, 64)
    assert shapes["model.layers.1.mlp.gate_up_proj.weight"] == (192, 64)
    layer = 64 + 128 * 64 + 64 * 64 + 64 + 192 * 64 + 64 * 96
    assert config.num_parameters == 2 * 320 * 64 + 2 * layer + 64
    tied = parse_model_config({**BASE, "tie_word_embeddings": True})
    assert tied.num_parameters == config.num_parameters - 320 * 64
    assert "lm_head.weight" not in tied.tensor_shapes()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "longrope", **FACTORS}, "original_max_position_embeddings": 4096},
        {"rope_scaling": {"type": "su", **FACTORS}, "original_max_position_embeddings": 4096},
        {"rope_scaling": {"type": "yarn", **FACTORS}, "original_max_position_embeddings": 4096},
        {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 4096, **FACTORS}},
    ],
)
def test_longrope_in_each_of_its_spellings(rope: Mapping[str, Any]) -> None:
    longrope = parse_model_config({**BASE, **rope}).longrope
    assert longrope is not None
    assert longrope.original_max_position == 4096
    assert longrope.long_factor == (2.0,) * 8
    assert longrope.attention_factor is None


def test_the_attention_factor_of_longrope() -> None:
    # Phi-3-mini-128k: sqrt(1 + ln 32 / ln 4096)
    assert own_attention_factor(32, 4096) == pytest.approx(1.1902380714238083)
    assert own_attention_factor(1, 4096) == 1
    rope = {"rope_type": "longrope", "factor": 32, "original_max_position_embeddings": 4096, **FACTORS}
    longrope = parse_model_config({**BASE, "rope_parameters": rope}).longrope
    assert longrope is not None
    assert longrope.attention_factor == own_attention_factor(32, 4096)


@pytest.mark.parametrize(("window", "expected"), [(None, None), (2047, 2047), (8192, None), (262144, None)])
def test_a_window_that_no_context_outgrows_is_none(window: int | None, expected: int | None) -> None:
    assert parse_model_config({**BASE, "sliding_window": window}).sliding_window == expected


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sliding_window": 31},
        {"head_dim": 32, "eos_token_id": [7, 8]},
        {"partial_rotary_factor": 0.5, "tie_word_embeddings": True},
        {"rope_scaling": {"type": "longrope", **FACTORS}, "original_max_position_embeddings": 4096},
        {"model_type": "llama", "sliding_window": 31},
    ],
)
def test_what_is_written_for_a_package_is_read_as_the_same_model(change: Mapping[str, Any]) -> None:
    config = parse_model_config({**BASE, **change})
    assert parse_model_config(config.to_phi3()) == config


@pytest.mark.parametrize("kind", ["plain", "gqa", "longrope", "partial", "tied", "window", "llama"])
def test_transformers_own_files_are_read(kind: str, tiny: Callable[..., Path]) -> None:
    table = json.loads((tiny(kind) / "config.json").read_text(encoding="utf-8"))
    config = parse_model_config(table)
    assert (config.hidden_size, config.num_layers) == (table["hidden_size"], table["num_hidden_layers"])
    assert parse_model_config(config.to_phi3()) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, ["'gpt2'", "supported"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"hidden_act": "gelu"}, ["'gelu'", "silu"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "got 0"]),
        ({"vocab_size": None}, ["vocab_size", "got None"]),
        ({"num_key_value_heads": 3}, ["4 attention heads", "3 key/value heads"]),
        ({"hidden_size": 66}, ["66", "multiple of 4"]),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, ["'linear'", "longrope"]),
        ({"rope_scaling": {"type": "longrope", **FACTORS, "long_factor": [1.0]}}, ["long_factor", "8 numbers"]),
    ],
)
def test_what_is_not_supported_is_one_clear_line(change: Mapping[str, Any], words: list[str]) -> None:
    with pytest.raises(SourceError, match=r"^here: ") as caught:
        parse_model_config({**BASE, **change}, "here")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
