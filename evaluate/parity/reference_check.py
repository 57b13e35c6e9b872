"""Whether the reference itself is the model: its first decoder layer against transformers' own, on the same text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from ...configs.errors import first_line
from ...export.sources.checkpoint import Checkpoint
from .reference import Reference
from .result import Row

_TOLERANCE = 1e-4
"""Of the largest value. Float32 sums in another order differ by 1e-6; a wrong factor, window or split by 1e-2."""


def check_reference(checkpoint: Checkpoint, sequences: Sequence[np.ndarray]) -> Row | str:
    """Compare the last norm of the first layer's output, which is what the head of a model of one layer would see.

    All layers are the same module, so one of them shows positions, factors, window and heads for a thirtieth of what
    the whole model costs.

    Args:
        checkpoint: the model.
        sequences: token ids, one array of shape [tokens] for each sequence.

    Returns:
        A row of the verification, or why transformers did not run the layer.

    Raises:
        SourceError: a weight cannot be read.

    """
    reference = Reference(checkpoint)
    found = reference.hidden_states(sequences, num_layers=1)
    weights = {name: torch.from_numpy(checkpoint.read(f"model.{name}")) for name in _weight_names(checkpoint)}
    theirs = f"transformers {version('transformers')}"
    try:
        wanted = _run_transformers(checkpoint, weights, reference.embed(sequences))
    except Exception as error:  # a release that builds or calls its models in another way says so as it likes
        return f"the reference's layers were not compared with {theirs}'s, which fails: {first_line(error)}"
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))
    tokens = sum(len(ids) for ids in sequences)
    detail = f"first layer, of the largest value; against {theirs}, {tokens} tokens"
    return Row("reference_error", error, _TOLERANCE, "at most", detail)


def _weight_names(checkpoint: Checkpoint) -> Iterator[str]:
    for name in checkpoint.config.tensor_shapes():
        if name.startswith(("model.layers.0.", "model.norm.")):
            yield name.removeprefix("model.")


@torch.inference_mode()
def _run_transformers(
    checkpoint: Checkpoint, weights: dict[str, torch.Tensor], embedded: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    from transformers import Phi3Config, Phi3Model

    # One layer, and no embedding to speak of: it is given the embedded text.
    changes = {"num_hidden_layers": 1, "vocab_size": 1, "bos_token_id": None, "eos_token_id": None}
    table: dict[str, Any] = {**checkpoint.config.to_phi3(), **changes, "pad_token_id": None}
    with _quiet_transformers():
        model = Phi3Model(Phi3Config(**table)).eval()
        state = {**weights, "embed_tokens.weight": torch.zeros(1, checkpoint.config.hidden_size)}
        model.load_state_dict(state, assign=True)
        return [model(inputs_embeds=states, use_cache=False).last_hidden_state[0] for states in embedded]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep its advice about old spellings of a config, which a user can do nothing about, from the screen."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
