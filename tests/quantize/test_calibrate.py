"""The calibration stream: what layers see, what comes out, and going on after a kill."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from phi3_onnx.configs import UsageError, WeightScheme
from phi3_onnx.export import open_checkpoint
from phi3_onnx.quantize.calibrate import LinearInput, QuantizedLayer, calibrate, load_layer, save_layer
from phi3_onnx.quantize.decoder_layer import LINEARS
from phi3_onnx.quantize.rtn import quantize_rtn
from phi3_onnx.quantize.samples import draw_samples
from transformers import AutoModelForCausalLM

Tiny = Callable[..., Path]
EIGHT_BITS, FOUR_BITS = WeightScheme(8, 32, True), WeightScheme(4, 32, False)


class Rounding:
    """A layer quantizer that rounds, and remembers what it was shown."""

    def __init__(self, scheme: WeightScheme, fail_at: int | None = None) -> None:
        self.scheme, self.fail_at = scheme, fail_at
        self.seen: dict[str, LinearInput] = {}

    def __call__(
        self, prefix: str, weights: Mapping[str, torch.Tensor], inputs: Mapping[str, LinearInput]
    ) -> QuantizedLayer:
        if self.fail_at is not None and prefix == f"model.layers.{self.fail_at}.":
            raise KeyboardInterrupt
        self.seen |= {prefix + name: value for name, value in inputs.items()}
        matrices = {f"{name}.weight": quantize_rtn(weights[f"{name}.weight"].numpy(), self.scheme) for name in LINEARS}
        norms = {name: weight.numpy() for name, weight in weights.items() if weight.ndim == 1}
        return QuantizedLayer(matrices, norms, {"mlp.down_proj.weight": {"method": "rtn"}})


def samples(count: int = 6, length: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(5, 400, (count, length))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("kind", ["plain", "gqa", "window"])
def test_layers_see_what_they_see_in_the_whole_model(
    tiny: Tiny, kind: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr("phi3_onnx.quantize.precision.has_fast_products", lambda: False)
    checkpoint = open_checkpoint(tiny(kind))
    rounding = Rounding(EIGHT_BITS)
    list(calibrate(checkpoint.config, checkpoint.read, samples(), rounding))
    model: Any = AutoModelForCausalLM.from_pretrained(tiny(kind), dtype=torch.float32)
    inputs: dict[str, torch.Tensor] = {}
    for name in rounding.seen:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, x, name=name: inputs.__setitem__(name, x[0].reshape(-1, x[0].shape[-1]))
        )
    with torch.no_grad():
        model(torch.from_numpy(samples()))
    assert set(inputs) == set(rounding.seen) == {f"model.layers.{i}.{name}" for i in range(2) for name in LINEARS}
    for name, x in inputs.items():
        seen = rounding.seen[name]
        assert seen.tokens == samples().size
        # The first layer's inputs are the same to float32's rounding, or to bfloat16's (2^-9) where the processor has
        # that; the second one's come through 8-bit weights.
        first = ".layers.0." in name and "down" not in name and "o_proj" not in name
        tolerance = (4e-3 if fast else 1e-4) if first else 0.05
        expected = x.T @ x / len(x)
        assert float((seen.gram - expected).abs().max() / expected.abs().max()) < tolerance
        assert float((seen.mean_abs - x.abs().mean(0)).abs().max()) < tolerance


def test_norms_report_the_largest_mean_square_of_a_row(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("plain"))
    _, first = next(calibrate(checkpoint.config, checkpoint.read, samples(), Rounding(EIGHT_BITS)))
    rows = checkpoint.read("model.embed_tokens.weight")[samples()]
    expected = float(np.square(rows).mean(-1).max())
    assert expected < 1, "what it begins with must not be larger"
    # bfloat16, where the processor has it, rounds each value by up to 2^-9.
    assert first.mean_squares["input_layernorm.weight"] == pytest.approx(expected, rel=0.01)
    assert set(first.mean_squares) == {"input_layernorm.weight", "post_attention_layernorm.weight", "output"}


def test_a_killed_run_goes_on_at_its_layer(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("plain"))
    whole = dict(calibrate(checkpoint.config, checkpoint.read, samples(), Rounding(FOUR_BITS)))
    with pytest.raises(KeyboardInterrupt):
        list(calibrate(checkpoint.config, checkpoint.read, samples(), Rounding(FOUR_BITS, fail_at=1), work=tmp_path))
    rest = Rounding(FOUR_BITS)
    resumed = dict(calibrate(checkpoint.config, checkpoint.read, samples(), rest, work=tmp_path))
    assert {name.split(".")[2] for name in rest.seen} == {"1"}
    for index, layer in whole.items():
        for name, weight in layer.matrices.items():
            assert np.array_equal(weight.packed, resumed[index].matrices[name].packed)


def test_progress_counts_layers(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("plain"))
    calls: list[tuple[int, int]] = []
    list(
        calibrate(
            checkpoint.config,
            checkpoint.read,
            samples(),
            Rounding(EIGHT_BITS),
            progress=lambda done, total: calls.append((done, total)),
        )
    )
    assert calls == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize("scheme", [EIGHT_BITS, FOUR_BITS])
def test_a_layer_on_disk_comes_back(tmp_path: Path, scheme: WeightScheme) -> None:
    weight = quantize_rtn(np.random.default_rng(0).normal(size=(8, 72)).astype(np.float32), scheme)
    layer = QuantizedLayer({"mlp.down_proj.weight": weight}, {"input_layernorm.weight": np.ones(4, np.float32)})
    save_layer(tmp_path / "layer.npz", layer)
    found = load_layer(tmp_path / "layer.npz")
    assert np.array_equal(found.matrices["mlp.down_proj.weight"].dequantize(), weight.dequantize())
    assert np.array_equal(found.norms["input_layernorm.weight"], np.ones(4))


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_a_layer_that_cannot_be_read_is_an_error_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "layer-000.npz"
    path.write_bytes(b"PK\x05\x06")
    with pytest.raises(OSError, match=r"cannot be read: .*layer-000\.npz"):
        load_layer(path)


def test_samples_are_whole_pieces_drawn_by_the_seed() -> None:
    text = "".join(chr(i) for i in range(1000))
    drawn = draw_samples([text], encode, num_samples=4, sequence_length=100, seed=1)
    assert drawn.shape == (4, 100)
    assert (np.diff(drawn, axis=1) == 1).all()
    assert np.array_equal(drawn, draw_samples([text], encode, num_samples=4, sequence_length=100, seed=1))
    assert not np.array_equal(drawn, draw_samples([text], encode, num_samples=4, sequence_length=100, seed=2))


def test_little_text_overlaps_and_too_little_is_refused() -> None:
    drawn = draw_samples(["a" * 60, "b" * 60], encode, num_samples=5, sequence_length=100, seed=0)
    assert drawn.shape == (5, 100)
    with pytest.raises(UsageError, match="has 60 tokens, one sequence takes 100"):
        draw_samples(["a" * 60], encode, num_samples=5, sequence_length=100, seed=0)
