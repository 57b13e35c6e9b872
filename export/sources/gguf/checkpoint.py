"""A GGUF file as a checkpoint: llama.cpp's names and conventions turned back into Hugging Face's.

What the converter (llama.cpp, conversion/phi.py and llama.py) does is undone here: for `llama` it interleaves the two
halves of every query and key head (its `permute`); for `phi3` it leaves the fused tensors as they are, and stores
LongRoPE's factors as tensors of their own.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ....configs import LongRope, ModelConfig
from ....configs.errors import SourceError
from ....configs.model import check_count, check_heads, own_attention_factor
from ..checkpoint import Checkpoint
from ..fusion import Part, Parts, check_parts, fused_parts, read_rows, split_parts
from ..naming import gguf_name
from ..problems import summarize
from ..tokenizer_files import check_tokenizer
from .file import GgufFile, can_dequantize
from .tokenizer import GgufTokenizer

ARCHITECTURES = ("llama", "phi3")
_NAMES: Mapping[str, str] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",  # the name of `up` alone in llama's files
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LONG, _SHORT, _LLAMA3_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight"


class GgufCheckpoint(Checkpoint):
    """A `.gguf` file of architecture `llama` or `phi3`, with weights of any type that the gguf package dequantizes."""

    def __init__(self, path: Path) -> None:
        """Open a file and check everything but the values of its weights; see `open_gguf`."""
        self._file = GgufFile(path)
        metadata = self._file.metadata
        if metadata.get("split.count", 0) > 1:
            raise SourceError(
                f"{path} is one of {metadata['split.count']} parts; join them first: llama-gguf-split --merge"
            )
        tokenizer = GgufTokenizer(metadata, str(path))
        self.source, self.revision = str(path), None
        self.model = gguf_name(path.stem, metadata.get("general.name"))
        self.config = _Metadata(path, self._file).config(tokenizer)
        self.generation_config = _generation_config(tokenizer)
        self._permuted = _heads_by_name(self.config) if metadata["general.architecture"] == "llama" else {}
        self._parts = _parts(self.config, metadata["general.architecture"])
        _check_tensors(path, self._parts, self._file)
        self._assets = tokenizer.files(self.config.max_position)
        check_tokenizer(self._assets, self.config.vocab_size, str(path))

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Return a tensor, or some of its rows, as a new float32 array; see `Checkpoint.read`."""
        return read_rows(self._parts[name], rows, self._read_into)

    def assets(self) -> Mapping[str, bytes]:
        """Return the tokenizer's files, made from the metadata; see `Checkpoint.assets`."""
        return self._assets

    def _read_into(self, name: str, start: int, out: np.ndarray) -> None:
        if name not in self._permuted:
            self._file.read_into(name, start, out)
            return
        head = self._file.tensors[name].shape[0] // self._permuted[name]
        first, end = start // head, -(-(start + len(out)) // head)  # the heads that the wanted rows lie in
        stored = np.empty(((end - first) * head, *out.shape[1:]), np.float32)
        self._file.read_into(name, first * head, stored)
        out[:] = unpermute(stored, end - first)[start - first * head :][: len(out)]


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file.

    Raises:
        SourceError: the file is damaged or incomplete, or of a kind that is not supported.

    """
    return GgufCheckpoint(path)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return rows of q or k as Hugging Face orders them: within a head, first halves of the rotated pairs, then second.

    GGUF files of `llama` have the two of each pair side by side.
    """
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _heads_by_name(config: ModelConfig) -> dict[str, int]:
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    return {f"blk.{i}.{part}.weight": count for i in range(config.num_layers) for part, count in heads.items()}


def _parts(config: ModelConfig, architecture: str) -> Parts:
    parts = split_parts(config) if architecture == "llama" else fused_parts(config)
    return {name: tuple(Part(_stored_name(part.name), part.shape) for part in stored) for name, stored in parts.items()}


def _stored_name(name: str) -> str:
    module = name.removesuffix(".weight")
    if layer := re.match(r"model\.layers\.(\d+)\.(.+)", module):
        return f"blk.{layer[1]}.{_NAMES[layer[2]]}.weight"
    return f"{_NAMES[module]}.weight"


def _check_tensors(path: Path, parts: Parts, file: GgufFile) -> None:
    problems = check_parts(parts, {name: tensor.shape for name, tensor in file.tensors.items()})
    needed = {part.name for stored in parts.values() for part in stored}
    kinds = {tensor.type for name, tensor in file.tensors.items() if name in needed}
    if unreadable := sorted(kind.name for kind in kinds if not can_dequantize(kind)):
        readable = ", ".join(kind.name for kind in gguf.GGMLQuantizationType if can_dequantize(kind))
        problems.append(f"weights of type {', '.join(unreadable)} cannot be read (supported: {readable})")
    extra = [name for name in file.tensors if name.endswith(".bias") or "_exps." in name]
    problems += [f"{name} has no place in Phi-3's layout (supported: no biases, no experts)" for name in extra]
    if problems:
        raise SourceError(f"{path} is not a complete model: {summarize(problems)}")


def _generation_config(tokenizer: GgufTokenizer) -> dict[str, object]:
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {
        **{name: id_ for name, id_ in ids.items() if id_ is not None},
        "eos_token_id": tokenizer.end_token_ids(),
    }


class _Metadata:
    """The keys of a file's architecture, checked as they are read."""

    def __init__(self, path: Path, file: GgufFile) -> None:
        self._path, self._file = path, file
        self._architecture = file.metadata.get("general.architecture")
        if self._architecture not in ARCHITECTURES:
            raise SourceError(
                f"{path}: architecture {self._architecture!r} is not supported; supported: {', '.join(ARCHITECTURES)}"
            )

    def config(self, tokenizer: GgufTokenizer) -> ModelConfig:
        hidden, heads = self._count("embedding_length"), self._count("attention.head_count")
        kv_heads = self._count("attention.head_count_kv", heads)
        head_dim = self._count("attention.key_length", max(hidden // heads, 1))
        rotary_dim = self._count("rope.dimension_count", head_dim)
        max_position = self._count("context_length")
        self._check_heads(hidden, heads, kv_heads, head_dim, rotary_dim)
        eos = tokenizer.eos_token_id
        return ModelConfig(
            vocab_size=self._vocab_size(),
            hidden_size=hidden,
            intermediate_size=self._count("feed_forward_length"),
            num_layers=self._count("block_count"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_position=max_position,
            rope_theta=self._float("rope.freq_base", 10000.0),
            rms_norm_eps=self._float("attention.layer_norm_rms_epsilon"),
            rotary_dim=rotary_dim,
            longrope=self._longrope(rotary_dim, max_position),
            sliding_window=self._sliding_window(max_position),
            tie_embeddings="output.weight" not in self._file.tensors,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_ids=() if eos is None else (eos,),
            pad_token_id=tokenizer.pad_token_id,
        )

    def _check_heads(self, hidden: int, heads: int, kv_heads: int, head_dim: int, rotary_dim: int) -> None:
        stated = "attention.key_length" in self._own()
        check_heads(heads, kv_heads, None if stated else ("embedding_length", hidden), str(self._path))
        if self._own().get("attention.value_length", head_dim) != head_dim:
            raise self._error("key and value heads of different sizes are not supported")
        if rotary_dim > head_dim or (self._architecture == "llama" and rotary_dim != head_dim):
            raise self._error(f"rope.dimension_count {rotary_dim} does not fit heads of {head_dim}")
        if self._own().get("expert_count"):
            raise self._error(f"a mixture of {self._own()['expert_count']} experts is not supported")

    def _longrope(self, rotary_dim: int, max_position: int) -> LongRope | None:
        tensors = self._file.tensors
        kind = self._own().get("rope.scaling.type", "none")
        if _LLAMA3_FACTORS in tensors or kind not in ("none", "longrope") or self._is_scaled():
            what = "Llama 3's" if _LLAMA3_FACTORS in tensors else repr(kind)
            raise self._error(f"rope scaling ({what}) is not supported; supported: none, and LongRoPE in phi3")
        if _LONG not in tensors and _SHORT not in tensors:
            return None
        original = self._count("rope.scaling.original_context_length", max_position)
        factors = [self._factors(name, rotary_dim // 2) for name in (_SHORT, _LONG)]
        return LongRope(factors[0], factors[1], original, self._attention_factor(original, max_position))

    def _is_scaled(self) -> bool:
        return any(self._own().get(key, 1.0) not in (0.0, 1.0) for key in ("rope.scaling.factor", "rope.scale_linear"))

    def _attention_factor(self, original: int, max_position: int) -> float | None:
        stated = self._own().get("rope.scaling.attn_factor")
        if stated is None:
            return None
        usual = own_attention_factor(max_position / original, original)
        # The file has it in float32; where that is LongRoPE's own factor, the exact one is better.
        return None if np.float32(usual) == np.float32(stated) else float(stated)

    def _factors(self, name: str, count: int) -> tuple[float, ...]:
        tensor = self._file.tensors.get(name)
        if tensor is None or tensor.shape != (count,):
            raise self._error(f"{name} must hold {count} values, got {tensor and tensor.shape[0]}")
        values = np.empty(count, np.float32)
        self._file.read_into(name, 0, values)
        return tuple(_shortest(value) for value in values.tolist())

    def _sliding_window(self, max_position: int) -> int | None:
        window = self._own().get("attention.sliding_window")
        if window is None and self._architecture == "phi3" and max_position == 4096:
            # Files of before August 2024 leave it out; llama.cpp takes Phi-3's 4k models to have this one.
            window = 2047 if self._count("block_count") in (32, 40) else 0
        return window if isinstance(window, int) and 0 < window < max_position else None

    def _vocab_size(self) -> int:
        tensor = self._file.tensors.get("token_embd.weight")
        if tensor is None:
            raise self._error("token_embd.weight is missing")
        return tensor.shape[0]

    def _own(self) -> Mapping[str, Any]:
        prefix = f"{self._architecture}."
        return {k.removeprefix(prefix): v for k, v in self._file.metadata.items() if k.startswith(prefix)}

    def _count(self, key: str, default: int | None = None) -> int:
        value = self._own().get(key, default)
        if isinstance(value, list) and len(set(value)) == 1:  # one value for each layer
            value = value[0]
        return check_count(value, f"{self._architecture}.{key}", str(self._path))

    def _float(self, key: str, default: float | None = None) -> float:
        value = self._own().get(key, default)
        if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
            raise self._error(f"{self._architecture}.{key} must be a positive number, got {value!r}")
        return _shortest(value)

    def _error(self, what: str) -> SourceError:
        return SourceError(f"{self._path}: {what}")


def _shortest(value: float) -> float:
    """Return the number that a float32 was written for: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
