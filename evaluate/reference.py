"""The float32 PyTorch reference: transformers' own Phi-3 layers, run one at a time from a checkpoint.

Only one decoder layer's weights are in memory at once, next to the hidden states of all sequences, so a model of 3.8 B
parameters (32 layers of 113 M) needs about 0.5 GB for its layers and 0.4 GB for its head, not 16 GB.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import masking_utils
from transformers.models.phi3 import modeling_phi3 as phi3

from ..export.checkpoint import Checkpoint
from ..quantize.hf_config import phi3_config

_ROWS_AT_ONCE = 8192
"""Embedding rows read together: 100 MB at Phi-3-mini's width."""

Notify = Callable[[str], None]


def _silent(_: str) -> None:
    """Report to nobody."""


class Reference:
    """A checkpoint's model in float32, on the CPU, as transformers defines it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._config: Any = phi3_config(checkpoint.config)
        # Not "eager": it holds every head's full score matrix, which is 2 GB at 4,096 tokens and 32 heads.
        self._config._attn_implementation = "sdpa"
        self._head: torch.Tensor | None = None

    @torch.inference_mode()
    def hidden_states(self, sequences: Sequence[np.ndarray], *, notify: Notify = _silent) -> list[torch.Tensor]:
        """Run all sequences through the model, each by itself, in one pass over its layers.

        Args:
            sequences: token ids, one array of shape [tokens] for each sequence.
            notify: called with a line of progress before each layer.

        Returns:
            For each sequence the input of the head, float32 [tokens, hidden size].

        Raises:
            SourceError: a weight can not be read.

        """
        hidden = self._embed(sequences)
        settings = self._attention_settings(hidden)
        # Built without storage: each layer's weights are put in place as they are read, with no copy.
        with torch.device("meta"):
            layer = phi3.Phi3DecoderLayer(self._config, layer_idx=0).eval()
            norm = phi3.Phi3RMSNorm(self._config.hidden_size, eps=self._config.rms_norm_eps)
        for index in range(self._checkpoint.config.num_layers):
            notify(f"reference: layer {index + 1} of {self._checkpoint.config.num_layers}")
            self._fill(layer, f"model.layers.{index}.")
            for i, states in enumerate(hidden):
                hidden[i] = layer(states, **settings[i])
        self._fill(norm, "model.norm.")
        return [norm(states)[0] for states in hidden]

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Return the logits of some positions.

        The head's weights are read on the first call and kept (394 MB for Phi-3-mini, 2.5 GB for Phi-4-mini).

        Args:
            hidden: one of the tensors that `hidden_states` returned, [tokens, hidden size].
            start: first position.
            stop: position after the last.

        Returns:
            float32 [stop - start, vocabulary].

        """
        if self._head is None:
            tied = self._checkpoint.config.tie_embeddings
            name = "model.embed_tokens.weight" if tied else "lm_head.weight"
            self._head = torch.from_numpy(self._checkpoint.read(name))
        return hidden[start:stop] @ self._head.T

    def _embed(self, sequences: Sequence[np.ndarray]) -> list[torch.Tensor]:
        config = self._checkpoint.config
        found = [np.empty((len(ids), config.hidden_size), dtype=np.float32) for ids in sequences]
        wanted = np.unique(np.concatenate([np.asarray(ids) for ids in sequences]))
        if wanted[0] < 0 or wanted[-1] >= config.vocab_size:
            raise ValueError(f"token ids must be 0 to {config.vocab_size - 1}, got {wanted[0]} to {wanted[-1]}")
        for first in range(0, config.vocab_size, _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE, config.vocab_size)
            if not np.any((wanted >= first) & (wanted < last)):
                continue
            rows = self._checkpoint.read("model.embed_tokens.weight", slice(first, last))
            for ids, states in zip(sequences, found, strict=True):
                here = (ids >= first) & (ids < last)
                states[here] = rows[ids[here] - first]
        return [torch.from_numpy(states)[None] for states in found]

    def _fill(self, module: torch.nn.Module, prefix: str) -> None:
        # The old weights go first, so that two layers are never in memory together.
        module.to_empty(device="meta")
        weights = {name: torch.from_numpy(self._checkpoint.read(prefix + name)) for name in module.state_dict()}
        module.load_state_dict(weights, assign=True)

    def _attention_settings(self, hidden: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
        # One for each sequence: the mask depends on its length, and so do the factors of LongRoPE.
        rotary = phi3.Phi3RotaryEmbedding(config=self._config)
        settings: list[dict[str, Any]] = []
        for states in hidden:
            positions = torch.arange(states.shape[1])[None]
            settings.append(
                {
                    "attention_mask": self._mask(states, positions),
                    "position_ids": positions,
                    "position_embeddings": rotary(states, position_ids=positions),
                }
            )
        return settings

    def _mask(self, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
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
