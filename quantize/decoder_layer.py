"""Run one decoder layer of a Phi-3 model from its weights, as transformers defines it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils
from transformers.models.phi3 import modeling_phi3 as phi3

from ..configs import ModelConfig
from .hf_config import phi3_config

LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
"""The linear layers, in the order in which a forward pass meets them."""

NORMS: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")


class DecoderLayers:
    """Runs decoder layers one at a time; the weights are the caller's, and only one layer's are ever held."""

    def __init__(self, config: ModelConfig) -> None:
        self._config: Any = phi3_config(config)
        # Not "eager": it holds every head's full score matrix, which is 2 GB at 4,096 tokens and 32 heads.
        self._config._attn_implementation = "sdpa"
        self._rotary = phi3.Phi3RotaryEmbedding(config=self._config)
        # Built without storage: a layer's weights are put in place as they are, with no copy.
        with torch.device("meta"):
            self._layer = phi3.Phi3DecoderLayer(self._config, layer_idx=0).eval()

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The names of a layer's weights, such as `mlp.down_proj.weight`."""
        return tuple(self._layer.state_dict())

    def settings(self, states: Tensor) -> dict[str, Any]:
        """Return what a layer takes beside the hidden states [batch, tokens, hidden size]: positions and mask.

        It depends on their length (LongRoPE's factors, too), and not on their values.
        """
        positions = torch.arange(states.shape[1])[None]
        return {
            "attention_mask": self._mask(states, positions),
            "position_ids": positions,
            "position_embeddings": self._rotary(states, position_ids=positions),
        }

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
        settings: Mapping[str, Any],
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
            return self._layer(states, **settings)
        finally:
            for handle in hooks:
                handle.remove()

    def _mask(self, states: Tensor, positions: Tensor) -> Tensor | None:
        make = masking_utils.create_causal_mask
        if self._config.sliding_window is not None:
            make = masking_utils.create_sliding_window_causal_mask
        values: dict[str, Any] = {
            "config": self._config,
            "attention_mask": None,
            "past_key_values": None,
            "position_ids": positions,
            # Called so in transformers 5 / 4, and asked for only by 4.
            "inputs_embeds": states,
            "input_embeds": states,
            "cache_position": positions[0],
        }
        return make(**{name: values[name] for name in inspect.signature(make).parameters if name in values})
