"""`genai_config.json`: what ONNX Runtime GenAI, from 0.13 on, reads about a package."""

from collections.abc import Mapping
from typing import Any

from ...configs import ModelConfig, Target

_PROVIDER_OPTIONS: Mapping[str, list[dict[str, Any]]] = {
    "cpu": [],
    "cuda": [{"cuda": {}}],
    "dml": [{"dml": {}}],
    "webgpu": [{"webgpu": {}}],
}


def genai_config(config: ModelConfig, target: Target, generation: Mapping[str, object]) -> dict[str, Any]:
    """Return the configuration of a package.

    Fields that 0.13.1 does not know are left out (its parser rejects them), and so is what belongs to one machine,
    such as the number of threads.
    """
    eos = end_tokens(config, generation)
    pad = config.pad_token_id if config.pad_token_id is not None else (eos[0] if eos else 0)
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    if target.position_ids:
        inputs["position_ids"] = "position_ids"
    return {
        "model": {
            "bos_token_id": config.bos_token_id if config.bos_token_id is not None else pad,
            "context_length": config.max_position,
            "decoder": {
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "provider_options": _PROVIDER_OPTIONS[target.provider],
                },
                "filename": "model.onnx",
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "inputs": inputs,
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": config.num_heads,
                "num_hidden_layers": config.num_layers,
                "num_key_value_heads": config.num_kv_heads,
            },
            "eos_token_id": eos if len(eos) != 1 else eos[0],
            "pad_token_id": pad,
            "type": _model_type(config),
            "vocab_size": config.vocab_size,
        },
        "search": _search(config, generation),
    }


def end_tokens(config: ModelConfig, generation: Mapping[str, object]) -> list[int]:
    """Return every token that ends an answer: generation_config.json's list, then config.json's."""
    listed = generation.get("eos_token_id")
    tokens = [int(token) for token in listed] if isinstance(listed, list) else []
    if isinstance(listed, int):
        tokens = [listed]
    return list(dict.fromkeys([*tokens, *config.eos_token_ids]))


def _model_type(config: ModelConfig) -> str:
    # GenAI runs a `phi3` prompt again when it reaches token 4097, which LongRoPE needs and nothing else does.
    return "phi3" if config.longrope or config.max_position <= 4096 else "llama"


def _search(config: ModelConfig, generation: Mapping[str, object]) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "do_sample": False,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    }
    chosen = {key: generation[key] if generation.get(key) is not None else value for key, value in defaults.items()}
    return {
        "diversity_penalty": 0.0,
        "early_stopping": True,
        "length_penalty": 1.0,
        "max_length": config.max_position,
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
        **chosen,
    }
