"""Calibrated quantization as a stream: one decoder layer in memory, the hidden states of all samples passed on.

For each layer: run the samples through it and gather what its linear layers see, have the layer quantized, run the
samples through the quantized layer, continue with what comes out. With a work folder, a killed run continues at the
layer it was at.
"""

import errno
import json
import logging
import math
import mmap
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from ..configs import ModelConfig, WeightScheme
from ..configs.files import replacing
from .decoder_layer import LINEARS, NORMS, DecoderLayers
from .packed import QuantizedWeight
from .precision import fast_layers, fast_products

_log = logging.getLogger(__name__)

Read = Callable[[str, slice | None], np.ndarray]
"""Checkpoint tensor name and rows -> float32 array."""

_TOKENS_AT_ONCE = 4096
_EMBEDDING_ROWS = 8192


@dataclass(frozen=True)
class LinearInput:
    """What one linear layer saw over all samples."""

    gram: Tensor
    """X^T X / tokens, float32 [K, K]."""
    mean_abs: Tensor
    """mean |x| of each input channel, float32 [K]."""
    tokens: int


@dataclass(frozen=True)
class QuantizedLayer:
    """A decoder layer after quantization; names such as `mlp.down_proj.weight`."""

    matrices: Mapping[str, QuantizedWeight]
    norms: Mapping[str, np.ndarray]
    """float32 [hidden size]; changed where a scale was folded into them."""
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What was done to each matrix and what it cost, as JSON values."""
    mean_squares: Mapping[str, float] = field(default_factory=dict)
    """The largest mean square of a row that each norm saw, by the names of their weights; and under `output` that of
    the layer's outputs, which the next norm sees."""


class LayerQuantizer(Protocol):
    """Quantizes the linear layers of one decoder layer."""

    def __call__(self, prefix: str, weights: Mapping[str, Tensor], inputs: Mapping[str, LinearInput]) -> QuantizedLayer:
        """Quantize a layer.

        Args:
            prefix: The layer's prefix in the checkpoint, `model.layers.3.`.
            weights: float32, by names such as `mlp.down_proj.weight` and `input_layernorm.weight`; may be changed.
            inputs: By names such as `mlp.down_proj`.

        """
        ...


Progress = Callable[[int, int], None]
"""Called with the layers done and the layers in all; whoever shows it estimates the time left."""


def calibrate(
    config: ModelConfig,
    read: Read,
    samples: np.ndarray,
    quantize: LayerQuantizer,
    *,
    work: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, QuantizedLayer]]:
    """Quantize the decoder layers of a model in order, and yield each with its number.

    Memory is that of the hidden states (samples * tokens * hidden size * 4 bytes; in files where `work` is given), one
    layer's weights, and the Gram matrices of its four inputs.

    Args:
        config: The model.
        read: Gives the checkpoint's tensors.
        samples: Token ids [samples, tokens].
        quantize: Quantizes a layer.
        work: Folder that keeps hidden states and finished layers, so that another call continues where this one was
            stopped. The caller makes sure that it belongs to the same model, samples and settings, and removes it.
        progress: Called before the first layer and after each.

    """
    layers = DecoderLayers(config)
    states = _States(config, samples.shape, work)
    report = progress or (lambda _done, _total: None)
    for index in range(states.layers_done):
        yield index, load_layer(_layer_file(states.work, index))
    if states.layers_done == 0:
        embed_samples(config, read, samples, states.current)
    report(states.layers_done, config.num_layers)
    for index in range(states.layers_done, config.num_layers):
        layer = _one_layer(index, layers, read, states, quantize)
        if states.work is not None:
            save_layer(_layer_file(states.work, index), layer)
        states.advance(index + 1)
        report(index + 1, config.num_layers)
        yield index, layer


def _one_layer(
    index: int, layers: DecoderLayers, read: Read, states: "_States", quantize: LayerQuantizer
) -> QuantizedLayer:
    prefix = f"model.layers.{index}."
    layers.forget_weights()
    weights = {name: torch.from_numpy(read(prefix + name, None)) for name in layers.weight_names}
    layers.set_weights(weights)
    seen = {name: _Gatherer() for name in LINEARS}
    largest: dict[str, float] = dict.fromkeys((*NORMS, "output"), 0.0)

    def see(name: str, inputs: Tensor) -> None:
        if name in seen:
            seen[name].add(inputs)
        else:
            largest[name] = max(largest[name], _mean_square(inputs))

    operators = None
    with fast_layers(), fast_products():
        for batch in states.batches():
            hidden = torch.from_numpy(np.array(states.current[batch]))
            operators = operators or layers.operators(hidden.shape[1])
            output = layers.run(hidden, operators, see, (*LINEARS, *NORMS))
            largest["output"] = max(largest["output"], _mean_square(output))
    states.release()
    quantized = quantize(prefix, weights, {name: gatherer.result() for name, gatherer in seen.items()})
    seen.clear()
    stored = {name: torch.from_numpy(weight.dequantize()) for name, weight in quantized.matrices.items()}
    stored |= {name: torch.from_numpy(weight) for name, weight in quantized.norms.items()}
    layers.set_weights(stored)
    assert operators is not None
    with fast_layers():
        for batch in states.batches():
            hidden = torch.from_numpy(np.array(states.current[batch]))
            states.following[batch] = layers.run(hidden, operators).numpy()
    squares = {f"{name}.weight" if name in NORMS else name: value for name, value in largest.items()}
    return replace(quantized, mean_squares=squares)


def _mean_square(rows: Tensor) -> float:
    """Return the largest mean square of a row."""
    return float(rows.float().square().mean(-1).max())


class _Gatherer:
    """Sums up what a linear layer sees."""

    def __init__(self) -> None:
        self._gram: Tensor | None = None
        self._abs: Tensor | None = None
        self._tokens = 0

    def add(self, inputs: Tensor) -> None:
        inputs = inputs.float()
        if self._gram is None or self._abs is None:
            width = inputs.shape[1]
            self._gram, self._abs = torch.zeros(width, width), torch.zeros(width, dtype=torch.float64)
        # One product of some thousand rows at a time: float32 sums of that length lose nothing that matters here.
        self._gram.addmm_(inputs.T, inputs)
        self._abs += inputs.abs().sum(0, dtype=torch.float64)
        self._tokens += len(inputs)

    def result(self) -> LinearInput:
        assert self._gram is not None and self._abs is not None
        return LinearInput(self._gram.div_(self._tokens), (self._abs / self._tokens).float(), self._tokens)


class _States:
    """The hidden states of all samples before and after the layer at hand, in memory or in files."""

    def __init__(self, config: ModelConfig, samples: tuple[int, ...], work: Path | None) -> None:
        self.work = work
        self._shape = (*samples, config.hidden_size)
        self._sequences = max(1, _TOKENS_AT_ONCE // samples[1])
        self.layers_done = 0
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
            self._progress = work / "progress.json"
            if self._progress.is_file():
                self.layers_done = self._resumed(work, config.num_layers)
        self.current, self.following = self._array(self.layers_done), self._array(self.layers_done + 1)

    def _resumed(self, work: Path, num_layers: int) -> int:
        """Return how many layers are done and whole; none where anything that the run continues from is damaged."""
        try:
            done = int(json.loads(self._progress.read_text(encoding="utf-8"))["layers_done"])
            if not 0 <= done <= num_layers:
                raise ValueError(f"{done} layers of {num_layers} are said to be done")
            for index in range(done):
                with zipfile.ZipFile(_layer_file(work, index)) as layer:
                    if (broken := layer.testzip()) is not None:
                        raise ValueError(
                            f"{_layer_file(work, index)}: {broken} has another sum than when it was written"
                        )
            states = work / f"states-{done % 2}.f32"
            if done < num_layers and (size := states.stat().st_size) != 4 * math.prod(self._shape):
                # NumPy would make it as long as it should be, with zeros.
                raise ValueError(f"{states} has {size} bytes, expected {4 * math.prod(self._shape)}")
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            _log.warning("calibrating anew, since what an earlier run left is damaged: %s", error)
            return 0
        return done

    def _array(self, layer: int) -> np.ndarray:
        if self.work is None:
            return np.empty(self._shape, np.float32)
        path = self.work / f"states-{layer % 2}.f32"
        _reserve(path, 4 * math.prod(self._shape))
        return np.memmap(path, np.float32, "r+", shape=self._shape)

    def batches(self) -> Iterator[slice]:
        for start in range(0, self._shape[0], self._sequences):
            yield slice(start, start + self._sequences)

    def release(self) -> None:
        """Leave the files' pages to the system's cache: mapped, they count as memory of this process."""
        for array in (self.current, self.following):
            # Windows has no such call, and takes pages away by itself.
            if isinstance(array, np.memmap) and hasattr(array.base, "madvise"):
                cast("mmap.mmap", array.base).madvise(mmap.MADV_DONTNEED)

    def advance(self, layers_done: int) -> None:
        """Take what came out of a layer as what goes into the next; only now does the layer count as done."""
        self.current, self.following = self.following, self.current
        self.layers_done = layers_done
        if isinstance(self.current, np.memmap):
            self.current.flush()
            with replacing(self._progress) as beside:
                beside.write_text(json.dumps({"layers_done": layers_done}), encoding="utf-8")


def _reserve(path: Path, num_bytes: int) -> None:
    """Make a file of so many bytes, or a longer one, and have the disk keep room for them.

    Without, the process would be ended by SIGBUS at the first mapped page that finds no room.

    Raises:
        OSError: there is no room; it names the file, which is left as it was, or not there.

    """
    there = path.exists()
    try:
        with path.open("ab") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            elif not there:
                file.truncate(num_bytes)
    except OSError as error:
        if not there:
            path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def embed_samples(config: ModelConfig, read: Read, samples: np.ndarray, out: np.ndarray) -> None:
    """Write the embeddings of token ids [samples, tokens] into `out`, float32 [samples, tokens, hidden size]."""
    for first in range(0, config.vocab_size, _EMBEDDING_ROWS):
        last = min(first + _EMBEDDING_ROWS, config.vocab_size)
        here = (samples >= first) & (samples < last)
        if here.any():
            rows = read("model.embed_tokens.weight", slice(first, last))
            out[here] = rows[samples[here] - first]


def _layer_file(work: Path | None, index: int) -> Path:
    assert work is not None
    return work / f"layer-{index:03d}.npz"


def save_layer(path: Path, layer: QuantizedLayer) -> None:
    """Write a quantized layer into a file."""
    arrays: dict[str, np.ndarray] = {f"norm:{name}": weight for name, weight in layer.norms.items()}
    schemes: dict[str, Any] = {}
    for name, weight in layer.matrices.items():
        scheme = weight.scheme
        schemes[name] = [scheme.bits, scheme.block_size, scheme.symmetric, *weight.shape]
        arrays |= {f"packed:{name}": weight.packed, f"scales:{name}": weight.scales}
        if weight.zero_points is not None:
            arrays[f"zeros:{name}"] = weight.zero_points
    reports = {key: dict(value) for key, value in layer.reports.items()}
    about = json.dumps({"schemes": schemes, "reports": reports, "mean_squares": dict(layer.mean_squares)})
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez(file, about=np.frombuffer(about.encode(), np.uint8), **arrays)  # pyright: ignore[reportArgumentType]


def load_layer(path: Path) -> QuantizedLayer:
    """Read what `save_layer` wrote.

    Raises:
        OSError: it cannot be read; it names the file.

    """
    try:
        return _loaded(path)
    except (zipfile.BadZipFile, EOFError, ValueError, KeyError) as error:  # zipfile hides a read that failed
        raise OSError(errno.EIO, f"cannot be read: {error}", str(path)) from error


def _loaded(path: Path) -> QuantizedLayer:
    with np.load(path) as arrays:
        about = json.loads(arrays["about"].tobytes())
        matrices = {
            name: QuantizedWeight(
                arrays[f"packed:{name}"],
                arrays[f"scales:{name}"],
                arrays.get(f"zeros:{name}"),
                WeightScheme(bits, block_size, symmetric),
                (rows, columns),
            )
            for name, (bits, block_size, symmetric, rows, columns) in about["schemes"].items()
        }
        norms = {key.removeprefix("norm:"): arrays[key] for key in arrays.files if key.startswith("norm:")}
    return QuantizedLayer(matrices, norms, about["reports"], about.get("mean_squares", {}))
