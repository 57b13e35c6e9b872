"""Trace Phi-3 into an ONNX graph without reading or holding a single weight.

The project's own module (`quantize.phi3`) is traced with parameters that have shapes and next to no storage. Norms and
attention emit the runtime's fused operators; the rest is traced as it stands.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ...configs import ModelConfig, Target
from ...quantize.phi3 import Phi3
from ..weights.layout import COS_TABLE, SIN_TABLE
from ..weights.rope import switches_factors, table_length


class _FusedOperators:
    """Norms and attention of one forward pass as operators of ONNX Runtime; `quantize.phi3.Operators`, symbolically."""

    def __init__(
        self,
        config: ModelConfig,
        tables: tuple[Tensor, Tensor],
        attention_mask: Tensor,
        past: Sequence[tuple[Tensor, Tensor]],
        positions: Tensor | None,
        by_position: bool,
    ) -> None:
        """Compute what all layers share.

        Args:
            config: The model.
            tables: The rotary embedding's cos and sin, as `rope_tables` has them.
            attention_mask: int64 [batch, past and new tokens].
            past: Each layer's keys and values, [batch, key/value heads, past tokens, head size].
            positions: The new tokens' [batch, tokens], for rotary nodes apart from the attention; None where
                GroupQueryAttention counts and rotates by itself.
            by_position: Whether LongRoPE's factors follow the largest position, and not the mask's width.

        """
        self._config = config
        self._past = iter(past)
        self.present: list[Tensor] = []
        """Each layer's keys and values, in order."""
        self._length = attention_mask.shape[1]
        # int64 [1]; stays on the CPU in every provider, since it comes from a shape.
        self._total = torch.onnx.ops.symbolic(
            "Shape", (attention_mask,), {"start": 1, "end": 2}, dtype=torch.int64, shape=(1,)
        )
        total_scalar = self._total.squeeze(0).to(torch.int32)
        self._lengths = ((attention_mask.sum(1) - 1).to(torch.int32), total_scalar)
        self._cos, self._sin = tables
        self._positions = positions
        if switches_factors(config):
            assert config.longrope is not None
            original = config.longrope.original_max_position
            # The mask has the width of the cache's capacity where a runtime captures the graph; positions are right
            # there too. The long factors' rows lie after the short ones'.
            longest = positions.max() + 1 if by_position and positions is not None else self._total
            first = (longest > original).to(torch.int64) * original
            if positions is not None:
                self._positions = positions + first
            else:
                # GroupQueryAttention counts from row 0, so the rows are cut out for it: as many as there are tokens.
                self._cos, self._sin = self._rows(self._cos, first), self._rows(self._sin, first)

    def norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Return SimplifiedLayerNormalization, which is RMS norm, with its statistics in float32."""
        attributes: dict[str, Any] = {"axis": -1, "epsilon": self._config.rms_norm_eps, "stash_type": 1}
        return torch.onnx.ops.symbolic(
            "SimplifiedLayerNormalization",
            (hidden, weight),
            attributes,
            dtype=hidden.dtype,
            shape=hidden.shape,
        )

    def attention(self, qkv: Tensor) -> Tensor:
        """Return GroupQueryAttention; the rotary embedding inside it, or as nodes of its own."""
        config, separate = self._config, self._positions is not None
        batch, length, _width = qkv.shape
        query_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        attended: tuple[Tensor | None, ...] = (qkv, None, None)
        if separate:
            query, key, value = qkv.split((query_size, kv_size, kv_size), dim=-1)
            attended = (self._rotate(query, config.num_heads), self._rotate(key, config.num_kv_heads), value)
        kv_shape = (batch, config.num_kv_heads, self._length, config.head_dim)
        output, *present = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (*attended, *next(self._past), *self._lengths, *(() if separate else (self._cos, self._sin))),
            {
                "num_heads": config.num_heads,
                "kv_num_heads": config.num_kv_heads,
                "scale": config.head_dim**-0.5,
                "local_window_size": config.sliding_window or -1,
                "do_rotary": int(not separate),
                "rotary_interleaved": 0,
            },
            dtypes=(qkv.dtype,) * 3,
            shapes=((batch, length, query_size), kv_shape, kv_shape),
            version=1,
        )
        self.present += present
        return output

    def _rotate(self, states: Tensor, heads: int) -> Tensor:
        attributes: dict[str, Any] = {"interleaved": 0}
        if self._config.rotary_dim != self._config.head_dim:
            attributes |= {"num_heads": heads, "rotary_embedding_dim": self._config.rotary_dim}
        return torch.onnx.ops.symbolic(
            "com.microsoft::RotaryEmbedding",
            (states, self._positions, self._cos, self._sin),
            attributes,
            dtype=states.dtype,
            shape=states.shape,
            version=1,
        )

    def _rows(self, table: Tensor, first: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            "Slice",
            (table, first, first + self._total),
            dtype=table.dtype,
            shape=(self._length, table.shape[1]),
        )


class _Traced(nn.Module):
    """The model with its rotary tables, its inputs and outputs those of the graph."""

    def __init__(self, config: ModelConfig, separate: bool) -> None:
        super().__init__()
        self.phi3 = Phi3(config)
        shape = (table_length(config), config.rotary_dim // 2)
        self.cos = nn.Parameter(torch.empty(shape, device="meta"))
        self.sin = nn.Parameter(torch.empty(shape, device="meta"))
        self._config, self._separate = config, separate

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        past: list[tuple[Tensor, Tensor]],
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        by_position = position_ids is not None
        if not self._separate:
            position_ids = None
        elif position_ids is None:
            total, length = attention_mask.shape[1], input_ids.shape[1]
            counted = attention_mask.cumsum(1) - 1
            position_ids = counted.narrow(1, total - length, length).clamp(min=0)
        operators = _FusedOperators(self._config, (self.cos, self.sin), attention_mask, past, position_ids, by_position)
        return (self.phi3(input_ids, operators), *operators.present)


def fits_fused_rotary(config: ModelConfig) -> bool:
    """Whether GroupQueryAttention can rotate by itself: it needs tables of a multiple of 8 columns."""
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


def _hollow(module: nn.Module, dtype: torch.dtype) -> None:
    """Let every parameter be a single number on the CPU, expanded to the parameter's shape.

    Not left on the `meta` device, since torch takes the outputs of symbolic operators to be on the CPU.
    """
    replaced: dict[nn.Parameter, nn.Parameter] = {}  # a tied weight stays one
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter not in replaced:
                replaced[parameter] = nn.Parameter(torch.zeros((), dtype=dtype).expand(parameter.shape))
            setattr(part, name, replaced[parameter])


def trace(config: ModelConfig, target: Target) -> ir.Model:
    """Trace a Phi-3 model of this shape for `target`.

    The graph's initializers carry the checkpoint's names (plus the rotary tables') and no values. Inputs and outputs
    stand in the order input_ids, attention_mask, past key and value of each layer, position_ids if the target wants
    them; logits, present key and value of each layer. Their names are the exporter's.
    """
    dtype = getattr(torch, target.io_dtype)
    dynamic = torch.export.Dim.DYNAMIC
    # Any sizes will do, as long as they differ: the tracer takes equal ones for the same dimension.
    batch, length, past_length = 2, 3, 5
    ids = torch.ones(batch, length, dtype=torch.int64)
    mask = torch.ones(batch, length + past_length, dtype=torch.int64)
    cached = torch.empty(batch, config.num_kv_heads, past_length, config.head_dim, dtype=dtype)
    past = [(torch.empty_like(cached), torch.empty_like(cached)) for _ in range(config.num_layers)]
    sizes = {0: dynamic, 2: dynamic}
    inputs: list[Any] = [ids, mask, past]
    shapes: list[Any] = [{0: dynamic, 1: dynamic}, {0: dynamic, 1: dynamic}, [(sizes, sizes)] * config.num_layers]
    if target.position_ids:
        inputs.append(torch.ones_like(ids))
        shapes.append({0: dynamic, 1: dynamic})
    module = _Traced(config, target.attention == "separate" or not fits_fused_rotary(config)).eval()
    _hollow(module, dtype)
    with _quiet_exporter(), torch.no_grad():
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
    """Return the checkpoint's name of a traced parameter: `phi3.model.layers.0...` -> `model.layers.0...`."""
    if tables := {"cos": COS_TABLE, "sin": SIN_TABLE}.get(traced):
        return tables
    name = traced.removeprefix("phi3.")
    # A tied embedding hangs in two places of the module.
    return "model.embed_tokens.weight" if tied and name == "lm_head.weight" else name
