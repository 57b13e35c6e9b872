"""The float32 PyTorch reference: Phi-3's layers, run one at a time from a checkpoint.

Only one decoder layer's weights are in memory at once, next to the hidden states of all sequences, so a model of 3.8 B
parameters (32 layers of 113 M) needs about 0.5 GB for its layers and 0.4 GB for its head, not 16 GB.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ...configs.progress import Progress, silent
from ...export.sources.checkpoint import Checkpoint
from ...quantize.decoder_layer import DecoderLayers

_ROWS_AT_ONCE = 8192
"""Embedding rows read together: 100 MB at Phi-3-mini's width."""


class Reference:
    """A checkpoint's model in float32, on the CPU."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._head: torch.Tensor | None = None

    @torch.inference_mode()
    def hidden_states(
        self, sequences: Sequence[np.ndarray], *, num_layers: int | None = None, progress: Progress = silent
    ) -> list[torch.Tensor]:
        """Run all sequences through the model, each by itself, in one pass over its layers.

        Args:
            sequences: token ids, one array of shape [tokens] for each sequence.
            num_layers: run these first layers only, and then the last norm; None runs all.
            progress: called before each layer.

        Returns:
            For each sequence the input of the head, float32 [tokens, hidden size].

        Raises:
            SourceError: a weight cannot be read.

        """
        hidden = self.embed(sequences)
        count = num_layers or self._checkpoint.config.num_layers
        layers = DecoderLayers(self._checkpoint.config)
        # One for each sequence: the mask depends on its length, and so do the factors of LongRoPE.
        operators = [layers.operators(len(ids)) for ids in sequences]
        for index in range(count):
            progress("reference", index, count, "layers")
            layers.forget_weights()
            layers.set_weights(self._weights(f"model.layers.{index}.", layers.weight_names))
            for i, states in enumerate(hidden):
                hidden[i] = layers.run(states, operators[i])
        weight = self._weights("model.norm.", ["weight"])["weight"]
        return [operators[i].norm(states, weight)[0] for i, states in enumerate(hidden)]

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

    def embed(self, sequences: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Return each sequence's embeddings, float32 [1, tokens, hidden size].

        Raises:
            ValueError: a token id is not in the vocabulary.
            SourceError: the weights cannot be read.

        """
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

    def _weights(self, prefix: str, names: Sequence[str]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(self._checkpoint.read(prefix + name)) for name in names}
