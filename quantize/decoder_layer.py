"""Run one decoder layer of a Phi-3 model from its weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..configs import ModelConfig
from .exact import ExactOperators
from .phi3 import DecoderLayer, Operators

LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
"""The linear layers, in the order in which a forward pass meets them."""

NORMS: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")


class DecoderLayers:
    """Runs decoder layers one at a time; the weights are the caller's, and only one layer's are ever held."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        # Built without storage: a layer's weights are put in place as they are, with no copy.
        self._layer = DecoderLayer(config).eval()

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The names of a layer's weights, such as `mlp.down_proj.weight`."""
        return tuple(self._layer.state_dict())

    def operators(self, tokens: int) -> ExactOperators:
        """Return what computes norms and attention for texts of this length; all layers can share it."""
        return ExactOperators(self._config, tokens)

    def forget_weights(self) -> None:
        """Let go of the weights; called before the next layer's are read, two layers are never in memory together."""
        self._layer.to_empty(device="meta")

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Let the following runs use these weights, by names such as `mlp.down_proj.weight`."""
        self._layer.load_state_dict(dict(weights), assign=True)

    @torch.no_grad()
    def run(
        self,
        states: Tensor,
        operators: Operators,
        see: Callable[[str, Tensor], None] | None = None,
        names: Sequence[str] = LINEARS,
    ) -> Tensor:
        """Return the layer's output for hidden states [batch, tokens, hidden size].

        `see` is called with each of the modules' `names` and its input [batch * tokens, K].
        """
        hooks = []
        if see is not None:
            for name in names:

                def hook(_: Any, inputs: tuple[Tensor, ...], name: str = name) -> None:
                    see(name, inputs[0].reshape(-1, inputs[0].shape[-1]))

                hooks.append(self._layer.get_submodule(name).register_forward_pre_hook(hook))
        try:
            return self._layer(states, operators)
        finally:
            for handle in hooks:
                handle.remove()
