"""Fill a package's data file: read a few rows, cast or quantize them, write them, drop them."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..configs import ModelConfig, Target, TensorSummary
from ..quantize.packed import QuantizedWeight
from ..quantize.rtn import quantize_rtn
from .calibration import Calibration, calibrated_layers
from .checkpoint import Checkpoint
from .data_file import DataFile
from .graph import Graph
from .passes import QuantizedTensor

_CHUNK_BYTES = 16 << 20
"""Bytes of float32 weights that one thread holds at a time."""


Progress = Callable[[str, int, int], None]
"""Called with the stage's name, how much is done and how much there is (bytes; layers while calibrating)."""


@dataclass(frozen=True)
class _Piece:
    tensor: str
    rows: slice


def fill(
    data: DataFile,
    graph: Graph,
    checkpoint: Checkpoint,
    target: Target,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
) -> dict[str, TensorSummary]:
    """Write every initializer of `graph` and return how each weight matrix was stored.

    Args:
        data: The file.
        graph: What belongs into it.
        checkpoint: The weights.
        target: How they are stored.
        calibration: What calibrated methods (all but `rtn`) need.
        progress: Called with "calibrating", the layers done, and the layers in all.

    Raises:
        SourceError: a tensor of the checkpoint can not be read.
        OSError: the file can not be written.

    """
    for name, table in graph.tables.items():
        data.write(name, table)
    errors = _Errors()
    written: set[str] = set()
    reports: dict[str, Mapping[str, Any]] = {}
    if calibration is not None and target.quantization is not None and target.quantization.method != "rtn":
        for index, layer in calibrated_layers(checkpoint, target, calibration, progress):
            prefix = f"model.layers.{index}."
            for name, weight in layer.matrices.items():
                _write_quantized(data, graph.quantized[prefix + name], weight)
            for name, norm in layer.norms.items():
                data.write(prefix + name, norm)
            written |= {prefix + name for name in (*layer.matrices, *layer.norms)}
            reports |= {prefix + name: report for name, report in layer.reports.items()}
    pieces = [piece for piece in _pieces(checkpoint.config) if piece.tensor not in written]
    _fill_by_pieces(data, graph, checkpoint, target, pieces, errors)
    return summaries(checkpoint.config, target, errors.relative(), reports)


def _fill_by_pieces(
    data: DataFile,
    graph: Graph,
    checkpoint: Checkpoint,
    target: Target,
    pieces: Sequence[_Piece],
    errors: "_Errors",
) -> None:
    """Read, cast or round, and write some rows at a time, on all cores."""
    stop = threading.Event()

    def work(piece: _Piece) -> None:
        if stop.is_set():
            return
        rows = checkpoint.read(piece.tensor, piece.rows)
        _store(data, graph, target, piece, rows, errors)

    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="fill") as pool:
        tasks = [pool.submit(work, piece) for piece in pieces]
        try:
            finished, _ = wait(tasks, return_when=FIRST_EXCEPTION)
        except BaseException:  # Ctrl-C: threads end with the piece they are at
            stop.set()
            raise
        failed = next((task for task in finished if task.exception()), None)
        if failed:
            stop.set()
    if failed:
        failed.result()


def _store(data: DataFile, graph: Graph, target: Target, piece: _Piece, rows: np.ndarray, errors: "_Errors") -> None:
    stored = graph.quantized.get(piece.tensor)
    if stored is None:
        data.write(piece.tensor, rows, piece.rows.start)
        return
    weight = quantize_rtn(rows, stored.scheme, target.io_dtype, threads=1)
    _write_quantized(data, stored, weight, piece.rows.start)
    errors.add(piece.tensor, rows, weight.dequantize())


def _write_quantized(data: DataFile, stored: QuantizedTensor, weight: QuantizedWeight, first_row: int = 0) -> None:
    data.write(stored.packed, weight.packed, first_row)
    data.write(stored.scales, weight.scales, first_row)
    if stored.zero_points and weight.zero_points is not None:
        data.write(stored.zero_points, weight.zero_points, first_row)


class _Errors:
    """Sums of squared weights and of squared quantization errors, by tensor."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def add(self, tensor: str, weight: np.ndarray, stored: np.ndarray) -> None:
        flat = weight.ravel()
        difference = np.subtract(weight, stored, out=stored).ravel()
        lost, whole = float(difference @ difference), float(flat @ flat)
        with self._lock:
            before = self._sums.get(tensor, (0.0, 0.0))
            self._sums[tensor] = (before[0] + lost, before[1] + whole)

    def relative(self) -> dict[str, float]:
        return {name: (lost / whole) ** 0.5 if whole else 0.0 for name, (lost, whole) in self._sums.items()}


def _pieces(config: ModelConfig) -> Iterator[_Piece]:
    for tensor, shape in config.tensor_shapes().items():
        row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * 4
        step = max(1, _CHUNK_BYTES // row_bytes)
        for start in range(0, shape[0], step):
            yield _Piece(tensor, slice(start, min(start + step, shape[0])))


def summaries(
    config: ModelConfig,
    target: Target,
    errors: Mapping[str, float],
    reports: Mapping[str, Mapping[str, Any]],
) -> dict[str, TensorSummary]:
    """Describe how `target` stores each weight matrix of the model.

    `errors` are the relative ones, where known; `reports` what a calibrated method says of its tensors.
    """
    found: dict[str, TensorSummary] = {}
    for tensor, shape in config.tensor_shapes().items():
        if len(shape) != 2:
            continue
        if target.quantization is None:
            bits = 16 if target.io_dtype == "float16" else 32
            found[tensor] = TensorSummary(shape, bits, None, None)
        else:
            scheme = target.quantization.scheme_for(tensor)
            report = dict(reports.get(tensor, {}))
            error = report.pop("relative_error", errors.get(tensor))
            found[tensor] = TensorSummary(shape, scheme.bits, scheme.block_size, scheme.symmetric, error, report)
    return found
