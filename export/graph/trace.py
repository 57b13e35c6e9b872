"""Trace transformers' Phi-3 into an ONNX graph without reading or holding a single weight.

The model is built under `FakeTensorMode` (shapes without storage). Attention, norms and the rotary embedding are
swapped for modules whose forward emits the runtime's fused operators; the rest is traced as transformers wrote it.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from transformers import Phi3ForCausalLM
from transformers.models.phi3 import modeling_phi3

from ...configs import ModelConfig, Target
from ...quantize.hf_config import phi3_config
from ..weights.layout import COS_TABLE, SIN_TABLE
from ..weights.rope import switches_factors, table_length


class _Norm(nn.Module):
    """RMS norm as ONNX Runtime's SimplifiedLayerNormalization, statistics in float32 as in transformers."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.weight = cast(Tensor, original.weight)
        self.epsilon = cast(float, original.variance_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        attributes: dict[str, Any] = {"axis": -1, "epsilon": self.epsilon, "stash_type": 1}
        return torch.onnx.ops.symbolic(
            "SimplifiedLayerNormalization",
            (hidden, self.weight),
            attributes,
            dtype=hidden.dtype,
            shape=hidden.shape,
        )


class _Rotary(nn.Module):
    """Hands the tables on to the attention operators; with LongRoPE, the part that the total length asks for."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, *, by_position: bool) -> None:
        super().__init__()
        self.by_position = by_position
        shape = (table_length(config), config.rotary_dim // 2)
        self.cos = nn.Parameter(torch.empty(shape, dtype=dtype))
        self.sin = nn.Parameter(torch.empty(shape, dtype=dtype))
        self.original = config.longrope.original_max_position if config.longrope else 0
        self.switches = switches_factors(config)
        self.step: _Step | None = None

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.step is not None
        if not self.switches:
            return self.cos, self.sin, position_ids
        # The mask's width is the cache's capacity where a runtime captures the graph: positions are right there too.
        longest = position_ids.max() + 1 if self.by_position else self.step.total
        first = (longest > self.original).to(torch.int64) * self.original
        if self.step.separate:
            return self.cos, self.sin, position_ids + first
        # GroupQueryAttention counts positions itself, so the rows are cut out for it: as many as there are tokens.
        return self._rows(self.cos, first), self._rows(self.sin, first), position_ids

    def _rows(self, table: Tensor, first: Tensor) -> Tensor:
        assert self.step is not None
        return torch.onnx.ops.symbolic(
            "Slice",
            (table, first, first + self.step.total),
            dtype=table.dtype,
            shape=(self.step.length, table.shape[1]),
        )


class _Step:
    """What every layer of one forward pass shares. Stands in for transformers' cache object."""

    def __init__(self, attention_mask: Tensor, past: list[tuple[Tensor, Tensor]], separate: bool) -> None:
        self.attention_mask = attention_mask
        self.past = past
        self.present: list[tuple[Tensor, Tensor]] = []
        self.separate = separate
        self.length = attention_mask.shape[1]
        # int64 [1]; stays on the CPU in every provider, since it comes from a shape.
        self.total = torch.onnx.ops.symbolic(
            "Shape", (attention_mask,), {"start": 1, "end": 2}, dtype=torch.int64, shape=(1,)
        )
        self.total_scalar = self.total.squeeze(0).to(torch.int32)
        self.last_positions = (attention_mask.sum(1) - 1).to(torch.int32)

    def positions(self, length: int | torch.SymInt) -> Tensor | None:
        """Return the positions of the tokens of this step where the graph has no input for them."""
        if not self.separate:
            return None  # GroupQueryAttention counts them itself
        counted = self.attention_mask.cumsum(1) - 1
        return counted.narrow(1, self.length - length, length).clamp(min=0)

    def get_seq_length(self, *_: object) -> int:
        return 0  # transformers asks, to count positions; the operators do that here


class _Attention(nn.Module):
    """Phi-3's attention as one GroupQueryAttention; the rotary embedding inside it, or as nodes of its own."""

    def __init__(self, original: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.qkv_proj = cast(nn.Module, original.qkv_proj)
        self.o_proj = cast(nn.Module, original.o_proj)
        self.layer = cast(int, original.layer_idx)
        self.scale = cast(float, original.scaling)
        self.config = config

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor, Tensor],
        past_key_values: _Step,
        **_: object,
    ) -> tuple[Tensor, None]:
        config, step = self.config, past_key_values
        cos, sin, positions = position_embeddings
        qkv = self.qkv_proj(hidden_states)
        attended: tuple[Tensor | None, ...] = (qkv, None, None)
        if step.separate:
            query_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
            query, key, value = qkv.split((query_size, kv_size, kv_size), dim=-1)
            query = self._rotate(query, config.num_heads, positions, cos, sin)
            attended = (query, self._rotate(key, config.num_kv_heads, positions, cos, sin), value)
        batch, length, _width = hidden_states.shape
        kv_shape = (batch, config.num_kv_heads, step.length, config.head_dim)
        output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (
                *attended,
                *step.past[self.layer],
                step.last_positions,
                step.total_scalar,
                *(() if step.separate else (cos, sin)),
            ),
            {
                "num_heads": config.num_heads,
                "kv_num_heads": config.num_kv_heads,
                "scale": self.scale,
                "local_window_size": config.sliding_window or -1,
                "do_rotary": int(not step.separate),
                "rotary_interleaved": 0,
            },
            dtypes=(qkv.dtype,) * 3,
            shapes=((batch, length, config.num_heads * config.head_dim), kv_shape, kv_shape),
            version=1,
        )
        step.present.append((present_key, present_value))
        return self.o_proj(output), None

    def _rotate(self, states: Tensor, heads: int, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        attributes: dict[str, Any] = {"interleaved": 0}
        if self.config.rotary_dim != self.config.head_dim:
            attributes |= {"num_heads": heads, "rotary_embedding_dim": self.config.rotary_dim}
        return torch.onnx.ops.symbolic(
            "com.microsoft::RotaryEmbedding",
            (states, positions, cos, sin),
            attributes,
            dtype=states.dtype,
            shape=states.shape,
            version=1,
        )


class _Traced(nn.Module):
    def __init__(self, model: Phi3ForCausalLM, rotary: _Rotary, separate: bool) -> None:
        super().__init__()
        self.model, self.rotary, self.separate = model, rotary, separate

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        past: list[tuple[Tensor, Tensor]],
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        step = self.rotary.step = _Step(attention_mask, past, self.separate)
        hidden = self.model.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=step.positions(input_ids.shape[1]) if position_ids is None else position_ids,
            past_key_values=cast("Any", step),
            use_cache=True,
        ).last_hidden_state
        return (self.model.lm_head(hidden), *(tensor for pair in step.present for tensor in pair))


def fits_fused_rotary(config: ModelConfig) -> bool:
    """Whether GroupQueryAttention can rotate by itself: it wants tables of a multiple of 8 columns."""
    return config.rotary_dim // 2 % 8 == 0


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's notes about packages that are not needed here (torchvision) from the user's screen."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a model of fake tensors another dtype, which `Module.to` can not: they do not let it swap them.

    torch's default dtype would do it too, but is one for all threads, and some may be quantizing weights.
    """
    converted: dict[nn.Parameter, nn.Parameter] = {}  # a tied weight stays one
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in converted:
                converted[parameter] = nn.Parameter(torch.empty_like(parameter, dtype=dtype))
            setattr(module, name, converted[parameter])


@contextmanager
def _masks_left_to_the_operator() -> Iterator[None]:
    names = ("create_causal_mask", "create_sliding_window_causal_mask")
    kept = {name: getattr(modeling_phi3, name) for name in names}
    for name in names:
        setattr(modeling_phi3, name, lambda **_: None)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(modeling_phi3, name, function)


def trace(config: ModelConfig, target: Target) -> ir.Model:
    """Trace a Phi-3 model of this shape for `target`.

    The graph's initializers carry the checkpoint's names (plus the rotary tables') and no values. Inputs and outputs
    stand in the order input_ids, attention_mask, past key and value of each layer, position_ids if the target wants
    them; logits, present key and value of each layer. Their names are the exporter's.
    """
    dtype = getattr(torch, target.io_dtype)
    dynamic = torch.export.Dim.DYNAMIC
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, _masks_left_to_the_operator(), _quiet_exporter(), torch.no_grad():
        model = Phi3ForCausalLM(phi3_config(config)).eval()
        _convert(model, dtype)
        rotary = _Rotary(config, dtype, by_position=target.position_ids)
        cast("Any", model.model).rotary_emb = rotary
        model.model.norm = cast("Any", _Norm(model.model.norm))
        for layer in cast("Any", model.model.layers):
            layer.input_layernorm = _Norm(layer.input_layernorm)
            layer.post_attention_layernorm = _Norm(layer.post_attention_layernorm)
            layer.self_attn = _Attention(layer.self_attn, config)
        # Any sizes will do, as long as they differ: the tracer takes equal ones for the same dimension.
        batch, length, past_length = 2, 3, 5
        past_shape = (batch, config.num_kv_heads, past_length, config.head_dim)
        ids = torch.ones(batch, length, dtype=torch.int64)
        mask = torch.ones(batch, length + past_length, dtype=torch.int64)
        past = [
            (torch.empty(past_shape, dtype=dtype), torch.empty(past_shape, dtype=dtype))
            for _ in range(config.num_layers)
        ]
        sizes = {0: dynamic, 2: dynamic}
        inputs: list[Any] = [ids, mask, past]
        shapes: list[Any] = [{0: dynamic, 1: dynamic}, {0: dynamic, 1: dynamic}, [(sizes, sizes)] * config.num_layers]
        if target.position_ids:
            inputs.append(torch.ones_like(ids))
            shapes.append({0: dynamic, 1: dynamic})
        module = _Traced(model, rotary, target.attention == "separate" or not fits_fused_rotary(config)).eval()
        exported = torch.export.export(module, tuple(inputs), dynamic_shapes=tuple(shapes), strict=False)
        # The exporter's own optimizer wants real tensors; the passes do what it would have done.
        program = torch.onnx.export(exported, dynamo=True, optimize=False, opset_version=target.opset, verbose=False)
    assert program is not None
    graph = program.model.graph
    for value in list(graph.initializers.values()):
        graph.initializers.pop(cast("str", value.name))
        value.name = _initializer_name(cast("str", value.name), config.tie_embeddings)
        value.const_value = None
        graph.initializers[value.name] = value
    return program.model


def _initializer_name(traced: str, tied: bool) -> str:
    """Return the checkpoint's name of a traced parameter: `model.model.layers.0...` -> `model.layers.0...`."""
    # The rotary module hangs in two places of the traced module, a tied embedding in two of the model.
    if traced.endswith(("rotary.cos", "rotary_emb.cos")):
        return COS_TABLE
    if traced.endswith(("rotary.sin", "rotary_emb.sin")):
        return SIN_TABLE
    name = traced.removeprefix("model.")
    return "model.embed_tokens.weight" if tied and name == "lm_head.weight" else name
