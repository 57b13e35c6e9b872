"""The streamed reference against transformers' own full models."""

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from phi3_onnx.evaluate.parity.reference import Reference
from phi3_onnx.export import Checkpoint, open_checkpoint
from transformers import AutoModelForCausalLM

Make = Callable[..., Path]

# What is left between the project's modules and transformers' is the order of additions within float32 matrix
# products, on logits of size 10.
TOLERANCE = 1e-5


def tokens(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 512, count)


def streamed(checkpoint: Checkpoint, sequences: list[np.ndarray]) -> list[np.ndarray]:
    reference = Reference(checkpoint)
    found = []
    for ids, hidden in zip(sequences, reference.hidden_states(sequences), strict=True):
        assert hidden.dtype == torch.float32
        parts = [reference.logits(hidden, start, min(start + 100, len(ids))) for start in range(0, len(ids), 100)]
        found.append(torch.cat(parts).numpy())
    return found


def whole(folder: Path, sequences: list[np.ndarray]) -> list[np.ndarray]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return [model(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy() for ids in sequences]


@pytest.mark.parametrize("kind", ["plain", "gqa", "partial", "window", "tied", "ragged", "sharded", "llama"])
def test_equals_the_full_model(kind: str, tiny: Make) -> None:
    sequences = [tokens(count) for count in (1, 40, 250)]
    folder = tiny(kind)
    for found, wanted in zip(streamed(open_checkpoint(folder), sequences), whole(folder, sequences), strict=True):
        assert np.abs(found - wanted).max() < TOLERANCE


def test_each_sequence_has_its_own_longrope_factors(tiny: Make) -> None:
    # 4097 tokens take the long factors, in any order and next to shorter sequences.
    sequences = [tokens(count) for count in (4097, 30, 4096, 4095)]
    folder = tiny("longrope")
    for found, wanted in zip(streamed(open_checkpoint(folder), sequences), whole(folder, sequences), strict=True):
        assert np.abs(found - wanted).max() < TOLERANCE


class Counting(Checkpoint):
    """Notes what is read."""

    def __init__(self, inner: Checkpoint) -> None:
        self._inner, self.reads = inner, Counter[str]()
        self.source, self.revision, self.model = inner.source, inner.revision, inner.model
        self.config, self.generation_config = inner.config, inner.generation_config

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        self.reads[name] += 1
        return self._inner.read(name, rows)

    def assets(self) -> Mapping[str, bytes]:
        return self._inner.assets()


def test_weights_are_read_once_for_all_sequences(tiny: Make) -> None:
    checkpoint = Counting(open_checkpoint(tiny("plain")))
    told: list[tuple[str, int, int, str]] = []
    reference = Reference(checkpoint)
    hidden = reference.hidden_states([tokens(5), tokens(9), tokens(5)], progress=lambda *report: told.append(report))
    assert "lm_head.weight" not in checkpoint.reads
    for states in hidden:
        reference.logits(states, 0, 3)
        reference.logits(states, 3, 5)
    assert set(checkpoint.reads.values()) == {1}
    assert set(checkpoint.reads) == set(checkpoint.config.tensor_shapes())
    assert told == [("reference", 0, 2, "layers"), ("reference", 1, 2, "layers")]


def test_only_the_embedding_rows_that_are_needed_are_read(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from phi3_onnx.evaluate.parity import reference as module

    checkpoint = open_checkpoint(tiny("tied"))
    ids = np.array([3, 511, 3, 200])
    wanted = streamed(checkpoint, [ids])[0]
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 100)
    counting = Counting(checkpoint)
    found = Reference(counting).hidden_states([ids])[0]
    assert counting.reads["model.embed_tokens.weight"] == 3  # of the 6 pieces of 512 rows
    assert np.array_equal(Reference(checkpoint).logits(found, 0, 4).numpy(), wanted)


@pytest.mark.parametrize("bad", [-1, 512])
def test_token_ids_beyond_the_vocabulary_are_refused(tiny: Make, bad: int) -> None:
    with pytest.raises(ValueError, match="0 to 511"):
        Reference(open_checkpoint(tiny("plain"))).hidden_states([np.array([1, bad])])


def test_a_layer_is_given_up_before_the_next_is_read(tiny: Make) -> None:
    weights: dict[str, weakref.ref[np.ndarray]] = {}
    alive: list[str] = []

    class Watching(Counting):
        def read(self, name: str, rows: slice | None = None) -> np.ndarray:
            layer = name.split(".mlp.")[0].split(".self_attn.")[0].removesuffix("layernorm.weight")
            others = (other for other, held in weights.items() if held() is not None and not other.startswith(layer))
            alive.extend(others if "_proj" in name else ())
            found = super().read(name, rows)
            if "_proj" in name:
                weights[name] = weakref.ref(found)
            return found

    Reference(Watching(open_checkpoint(tiny("sharded")))).hidden_states([tokens(4)])
    assert len(weights) == 3 * 4
    assert alive == []
