"""Checkpoint folders written as GGUF files, the way llama.cpp's converter writes them."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from phi3_onnx.configs import ModelConfig
from phi3_onnx.export.sources.checkpoint import Checkpoint
from phi3_onnx.export.sources.folder import open_folder

# (Hugging Face's module, phi3's name in GGUF files)
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Change = Callable[[dict[str, Any], dict[str, np.ndarray]], None]


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's conversion/llama.py, `permute`: the halves of each head are interleaved."""
    return weights.reshape(heads, 2, len(weights) // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def gguf_tensors(checkpoint: Checkpoint, architecture: str) -> dict[str, np.ndarray]:
    config, tensors = checkpoint.config, dict[str, np.ndarray]()
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for name in config.tensor_shapes():
        values = checkpoint.read(name)
        layer, module = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.weight", name).groups()  # pyright: ignore[reportOptionalMemberAccess]
        prefix = f"blk.{layer}." if layer else ""
        if architecture == "llama" and module.endswith("qkv_proj"):
            q, k, v = np.split(values, [query, query + key])
            tensors[f"{prefix}attn_q.weight"] = permute(q, config.num_heads)
            tensors[f"{prefix}attn_k.weight"] = permute(k, config.num_kv_heads)
            tensors[f"{prefix}attn_v.weight"] = v
        elif architecture == "llama" and module.endswith("gate_up_proj"):
            tensors[f"{prefix}ffn_gate.weight"], tensors[f"{prefix}ffn_up.weight"] = np.split(values, 2)
        else:
            tensors[f"{prefix}{NAMES[module]}.weight"] = values
    if config.longrope:
        tensors["rope_factors_long.weight"] = np.array(config.longrope.long_factor, np.float32)
        tensors["rope_factors_short.weight"] = np.array(config.longrope.short_factor, np.float32)
    return tensors


def gguf_metadata(config: ModelConfig, folder: Path, architecture: str) -> dict[str, Any]:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokens = {i: token for token, i in tokenizer["model"]["vocab"].items()}
    tokens |= {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    special = {token["id"] for token in tokenizer["added_tokens"]}
    own: dict[str, Any] = {
        "context_length": config.max_position,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_layers,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.rotary_dim,
        "rope.freq_base": config.rope_theta,
    }
    if architecture == "phi3":
        own["attention.sliding_window"] = config.sliding_window or 0
        own["rope.scaling.original_context_length"] = config.max_position
    if config.longrope:
        original = config.longrope.original_max_position
        own["rope.scaling.original_context_length"] = original
        own["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(config.max_position / original) / math.log(original))
    return {
        "general.name": "Tiny Model",
        **{f"{architecture}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [tokens[i] for i in range(len(tokens))],
        "tokenizer.ggml.token_type": [3 if i in special else 1 for i in range(len(tokens))],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokenizer["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": (folder / "chat_template.jinja").read_text(),
    }


def write_gguf(
    path: Path, folder: Path, architecture: str = "phi3", kind: str = "F32", change: Change | None = None
) -> Path:
    """Write a checkpoint folder as a GGUF file; matrices in `kind`, the rest in float32, as the converter does."""
    checkpoint = open_folder(folder)
    metadata = gguf_metadata(checkpoint.config, folder, architecture)
    tensors = gguf_tensors(checkpoint, architecture)
    if change:
        change(metadata, tensors)
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture", architecture))
    for key, value in metadata.items():
        add = {
            str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool,
            list: writer.add_array,
        }[type(value)]  # fmt: skip
        add(key, value)
    for name, values in tensors.items():
        quantized = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quantize(values, quantized), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
