"""The architecture of a checkpoint, read from its `config.json`: Phi-3 and what can be fused into Phi-3's layout."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import SourceError

SUPPORTED = "phi3 (Phi-3, Phi-3.5, Phi-4-mini) and Llama-like models without biases (llama, mistral)"


_LARGEST = 3.4e38
"""What float32 holds."""
_MOST = {"num_hidden_layers": 1024, "num_attention_heads": 4096, "num_key_value_heads": 4096, "head_dim": 16384}
_MOST_OTHERS = 1 << 30
"""Far beyond any model: what a file states becomes lists of tensors and tables before a weight is read."""


@dataclass(frozen=True)
class LongRope:
    """LongRoPE (arXiv:2402.13753): one set of factors up to `original_max_position` tokens in all, another beyond."""

    short_factor: tuple[float, ...]
    """[rotary_dim / 2]"""
    long_factor: tuple[float, ...]
    """[rotary_dim / 2]"""
    original_max_position: int
    attention_factor: float | None = None
    """Factor on cos and sin where the config states one; None is LongRoPE's own, from the ratio of the lengths."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder in Phi-3's layout: fused QKV, fused gate/up, RMS norms, SwiGLU, rotary embedding."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rope_theta: float
    rms_norm_eps: float
    rotary_dim: int
    """The leading part of each head that is rotated; smaller than head_dim with partial rotary."""
    longrope: LongRope | None
    sliding_window: int | None
    """Tokens a position attends to, itself included, where that is fewer than the context holds."""
    tie_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @property
    def qkv_size(self) -> int:
        """Rows of the fused QKV projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of such a checkpoint, by its Hugging Face name, in storage order.

        With tied embeddings there is no `lm_head.weight`.
        """
        hidden, ffn = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for i in range(self.num_layers):
            layer = f"model.layers.{i}."
            shapes[layer + "input_layernorm.weight"] = (hidden,)
            shapes[layer + "self_attn.qkv_proj.weight"] = (self.qkv_size, hidden)
            shapes[layer + "self_attn.o_proj.weight"] = (hidden, self.num_heads * self.head_dim)
            shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
            shapes[layer + "mlp.gate_up_proj.weight"] = (2 * ffn, hidden)
            shapes[layer + "mlp.down_proj.weight"] = (hidden, ffn)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    @property
    def num_parameters(self) -> int:
        """Weights in all; a tied embedding counts once."""
        total = 0
        for shape in self.tensor_shapes().values():
            size = 1
            for n in shape:
                size *= n
            total += size
        return total

    def to_phi3(self) -> dict[str, Any]:
        """Return the `config.json` of this model as a Phi-3 checkpoint, readable by old and new transformers."""
        rope_scaling = None
        if self.longrope:
            rope_scaling = {
                "type": "longrope",
                "short_factor": list(self.longrope.short_factor),
                "long_factor": list(self.longrope.long_factor),
            }
            if self.longrope.attention_factor is not None:
                rope_scaling["attention_factor"] = self.longrope.attention_factor
        config: dict[str, Any] = {
            "architectures": ["Phi3ForCausalLM"],
            "model_type": "phi3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_position,
            "original_max_position_embeddings": (
                self.longrope.original_max_position if self.longrope else self.max_position
            ),
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": rope_scaling,
            "partial_rotary_factor": self.rotary_dim / self.head_dim,
            "sliding_window": self.sliding_window,
            "tie_word_embeddings": self.tie_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_ids) if len(self.eos_token_ids) != 1 else self.eos_token_ids[0],
            "pad_token_id": self.pad_token_id,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
        }
        if self.head_dim * self.num_heads != self.hidden_size:
            config["head_dim"] = self.head_dim
        return config


def parse_model_config(config: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Read the architecture from the content of a Hugging Face `config.json`, of any age.

    Raises:
        SourceError: the architecture is not supported, or a needed value is missing or makes no sense.

    """
    reader = _Reader(config, where)
    kind = config.get("model_type")
    if kind not in ("phi3", "llama", "mistral"):
        raise SourceError(f"{where}: model_type {kind!r} is not supported; supported: {SUPPORTED}")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise SourceError(f"{where}: {key}=true is not supported (Phi-3's layout has no biases)")
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise SourceError(f"{where}: hidden_act {activation!r} is not supported; expected 'silu'")

    hidden, heads = reader.count("hidden_size"), reader.count("num_attention_heads")
    kv_heads = reader.count("num_key_value_heads", heads)
    check_heads(heads, kv_heads, None if config.get("head_dim") else ("hidden_size", hidden), where)
    head_dim = reader.count("head_dim", hidden // heads)
    max_position = reader.count("max_position_embeddings")
    rope = _rope_table(config, where)
    share = number(rope.get("partial_rotary_factor"), "partial_rotary_factor", where, default=1.0, most=1.0)
    rotary_dim = int(head_dim * share)
    eos = config.get("eos_token_id")
    return ModelConfig(
        vocab_size=reader.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.count("intermediate_size"),
        num_layers=reader.count("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=max_position,
        rope_theta=number(rope.get("rope_theta"), "rope_theta", where, default=10000.0),
        rms_norm_eps=number(
            config.get("rms_norm_eps"), "rms_norm_eps", where, default=1e-5 if kind == "phi3" else 1e-6, most=1.0
        ),
        rotary_dim=rotary_dim,
        longrope=_longrope(config, rope, rotary_dim, max_position, where),
        sliding_window=_sliding_window(config, kind, max_position, where),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        bos_token_id=_token(config.get("bos_token_id"), "bos_token_id", where),
        eos_token_ids=tuple(
            token
            for entry in (eos if isinstance(eos, list) else [eos])
            if (token := _token(entry, "eos_token_id", where)) is not None
        ),
        pad_token_id=_token(config.get("pad_token_id"), "pad_token_id", where),
    )


def own_attention_factor(scale: float, original: int) -> float:
    """Return LongRoPE's own factor on cos and sin for a context `scale` times as long as the original one."""
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def check_heads(heads: int, kv_heads: int, hidden: tuple[str, int] | None, where: str) -> None:
    """Refuse counts of heads that do not fit each other, or a width that they have to share and cannot.

    Args:
        heads: attention heads.
        kv_heads: key and value heads.
        hidden: the width's name and the width, where the size of a head is not stated and follows from it.
        where: the file, for the message.

    Raises:
        SourceError: they do not fit.

    """
    if heads % kv_heads:
        raise SourceError(f"{where}: {heads} attention heads cannot share {kv_heads} key/value heads")
    if hidden and hidden[1] % heads:
        raise SourceError(f"{where}: {hidden[0]} {hidden[1]} is not a multiple of {heads} attention heads")


def check_count(value: object, key: str, where: str) -> int:
    """Return a value of the key of a file if it is a positive whole number.

    Raises:
        SourceError: it is not.

    """
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise SourceError(f"{where}: {key} must be a positive whole number, got {value!r:.80}")
    if value > (most := _MOST.get(key, _MOST_OTHERS)):
        raise SourceError(f"{where}: {key} must be at most {most}, got {value!r:.80}")
    return value


@dataclass(frozen=True)
class _Reader:
    config: Mapping[str, Any]
    where: str

    def count(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        return check_count(default if value is None else value, key, self.where)


def number(value: object, key: str, where: str, *, default: float | None = None, most: float = _LARGEST) -> float:
    """Return a value of the key of a file if it is a positive, finite number, or the default where it is null.

    Raises:
        SourceError: it is not, or larger than `most`.

    """
    if value is None and default is not None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
        bound = f" up to {most:g}" if most < _LARGEST else ""
        raise SourceError(f"{where}: {key} must be a positive number{bound}, got {value!r:.80}")
    return float(value)


def _token(value: object, key: str, where: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise SourceError(f"{where}: {key} must be a token's number or null, got {value!r:.80}")
    return value


def _rope_table(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Bring the three spellings together: `rope_parameters` (transformers 5), `rope_scaling`, and top-level keys."""
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(config.get(key) or {}, Mapping):
            raise SourceError(f"{where}: {key} must be a JSON object or null, got {config[key]!r:.80}")
    table = dict(config.get("rope_parameters") or {})
    for key, value in (config.get("rope_scaling") or {}).items():
        table.setdefault(key, value)
    for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if config.get(key) is not None:
            table.setdefault(key, config[key])
    return table


def _longrope(
    config: Mapping[str, Any], rope: Mapping[str, Any], rotary_dim: int, max_position: int, where: str
) -> LongRope | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    # `su` is LongRoPE's first name. Phi-3 alone also says `yarn` for it, as transformers' own Phi3Config accepts.
    if kind not in ("longrope", "su") and not (kind == "yarn" and config.get("model_type") == "phi3"):
        raise SourceError(f"{where}: rope_type {kind!r} is not supported; supported: default, longrope (also as 'su')")
    factors: dict[str, tuple[float, ...]] = {}
    for key in ("short_factor", "long_factor"):
        values = rope.get(key)
        if not isinstance(values, list) or len(values) != rotary_dim // 2:
            got = f"{len(values)} values" if isinstance(values, list) else repr(values)
            raise SourceError(f"{where}: rope {key} must be a list of {rotary_dim // 2} numbers, got {got}")
        factors[key] = tuple(number(value, f"each {key} of rope", where) for value in values)
    key = "original_max_position_embeddings"
    original = check_count(rope.get(key) or max_position, key, where)
    return LongRope(factors["short_factor"], factors["long_factor"], original, _attention_factor(rope, original, where))


def _attention_factor(rope: Mapping[str, Any], original: int, where: str) -> float | None:
    stated = rope.get("attention_factor")
    if stated is None and rope.get("factor") is not None:
        if original < 2:
            raise SourceError(f"{where}: original_max_position_embeddings must be 2 or more, got {original}")
        stated = own_attention_factor(number(rope["factor"], "rope factor", where), original)
    return None if stated is None else number(stated, "rope attention_factor", where)


def _sliding_window(config: Mapping[str, Any], kind: str, max_position: int, where: str) -> int | None:
    window = config.get("sliding_window") if kind in ("phi3", "mistral") else None
    # A window that no context can outgrow is none (Phi-3's 128k models say 262144).
    if window is None:
        return None
    window = check_count(window, "sliding_window", where)
    return None if window >= max_position else window
