"""What Phi-3 is: its layers as torch modules, with their parameters under the checkpoint's names.

How norms and attention are computed is left to `Operators`. The float32 reference and calibration compute them with
torch (`exact`), the exported graph with the runtime's fused operators (`export.trace`); all else, they share.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..configs import ModelConfig


class Operators(Protocol):
    """What a forward pass computes in one way or another; it also holds what all layers share, such as positions."""

    def norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Return the RMS norm of hidden states [batch, tokens, hidden size], scaled by `weight` [hidden size]."""
        ...

    def attention(self, qkv: Tensor) -> Tensor:
        """Rotate queries and keys and attend; called once for each layer, in order.

        Args:
            qkv: [batch, tokens, (heads + 2 * key/value heads) * head size], queries first, values last.

        Returns:
            [batch, tokens, heads * head size].

        """
        ...


class Norm(nn.Module):
    """RMS norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size, device="meta"))

    def forward(self, hidden: Tensor, operators: Operators) -> Tensor:
        """Return the norm of hidden states [batch, tokens, hidden size]."""
        return operators.norm(hidden, self.weight)


class Attention(nn.Module):
    """Attention with one projection for queries, keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.qkv_proj = _linear(config.hidden_size, config.qkv_size)
        self.o_proj = _linear(config.num_heads * config.head_dim, config.hidden_size)

    def forward(self, hidden: Tensor, operators: Operators) -> Tensor:
        """Return what hidden states [batch, tokens, hidden size] attend to, of the same shape."""
        return self.o_proj(operators.attention(self.qkv_proj(hidden)))


class Mlp(nn.Module):
    """SwiGLU with one projection for gate and up, the gate's rows first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up_proj = _linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = _linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return hidden states of the same shape, [batch, tokens, hidden size]."""
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        return self.down_proj(up * functional.silu(gate))


class DecoderLayer(nn.Module):
    """Attention and MLP, each after a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = Norm(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config)
        self.mlp = Mlp(config)

    def forward(self, hidden: Tensor, operators: Operators) -> Tensor:
        """Return hidden states of the same shape, [batch, tokens, hidden size]."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden, operators), operators)
        return hidden + self.mlp(self.post_attention_layernorm(hidden, operators))


class Decoder(nn.Module):
    """Embedding, decoder layers and the last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, device="meta")
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = Norm(config)

    def forward(self, input_ids: Tensor, operators: Operators) -> Tensor:
        """Return the head's input [batch, tokens, hidden size] for token ids [batch, tokens]."""
        hidden = self.embed_tokens(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, operators)
        return self.norm(hidden, operators)


class Phi3(nn.Module):
    """The whole model. Its parameters lie on torch's `meta` device until they are loaded: shapes without storage."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = _linear(config.hidden_size, config.vocab_size)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids: Tensor, operators: Operators) -> Tensor:
        """Return logits [batch, tokens, vocabulary] for token ids [batch, tokens]."""
        return self.lm_head(self.model(input_ids, operators))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False, device="meta")
