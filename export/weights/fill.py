"""Fill a package's data file: read a few rows, cast or quantize them, write them, drop them.

Large models are filled by several processes. Threads of one process hold each other up at the interpreter's lock (two
of them kept 1.4 of two cores busy), and processes leave this one free to trace the graph meanwhile.
"""

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...configs import ModelConfig, OutputError, Target, TensorSummary
from ...configs.lifeline import end_with
from ...configs.progress import Progress
from ...quantize.packed import QuantizedWeight, pack_codes
from ...quantize.rtn import quantize_rtn
from ..sources.checkpoint import Checkpoint
from .data_file import DataFile
from .layout import EMBEDDING

_log = logging.getLogger(__name__)

PIECE_BYTES = 16 << 20
"""Bytes of float32 weights that a worker holds at a time."""

_WORTH_PROCESSES = 1 << 28
"""Weights from which on processes are started: each takes two seconds to begin with, which threads do not."""

_MOST_PROCESSES = 4
"""With so many, filling takes no longer than tracing the graph; each more costs memory."""


class Tally:
    """Counts the bytes of a data file that were written, by initializer, and reports them."""

    def __init__(self, data: DataFile, progress: Progress) -> None:
        self._missing = {name: entry.num_bytes for name, entry in data.layout.stored.items()}
        self._total, self._done = sum(self._missing.values()), 0
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, written: Mapping[str, int]) -> None:
        """Count bytes that were written."""
        with self._lock:
            for name, count in written.items():
                self._missing[name] -= count
                self._done += count
            self._progress("writing", self._done, self._total, "bytes")

    def check(self) -> None:
        """Raise OutputError unless all bytes were written, once as far as counting tells."""
        if short := [name for name, missing in self._missing.items() if missing]:
            raise OutputError(f"{len(short)} tensors were not written whole, the first is {short[0]}")


@dataclass(frozen=True)
class _Piece:
    tensor: str
    rows: slice


@dataclass(frozen=True)
class _Done:
    """What became of a piece."""

    tensor: str
    written: Mapping[str, int]
    """Bytes by initializer."""
    lost: float = 0.0
    """Sum of squared quantization errors."""
    whole: float = 0.0
    """Sum of squared weights."""


@dataclass(frozen=True)
class _Job:
    """What all pieces have in common; each worker is given it once."""

    data: DataFile
    checkpoint: Checkpoint
    target: Target


class Filling:
    """Pieces that are being written."""

    def __init__(self, executor: Executor, tally: Tally) -> None:
        self._executor, self._tally = executor, tally
        self._futures: list[Future[_Done]] = []

    def submit(self, pieces: Sequence[_Piece]) -> None:
        """Have pieces written."""
        for piece in pieces:
            future = self._executor.submit(_work, piece)
            future.add_done_callback(self._count)
            self._futures.append(future)

    def _count(self, future: "Future[_Done]") -> None:
        if not future.cancelled() and future.exception() is None:
            self._tally.add(future.result().written)

    def finish(self) -> dict[str, float]:
        """Wait for all of them, and return the relative error of each quantized tensor.

        Raises:
            SourceError: a tensor of the checkpoint cannot be read.
            OSError: the file cannot be written.
            OutputError: a worker process was killed.

        """
        from loky.process_executor import BrokenProcessPool

        finished, _ = wait(self._futures, return_when=FIRST_EXCEPTION)
        failed = next((error for future in finished if (error := future.exception())), None)
        if isinstance(failed, BrokenProcessPool):
            raise OutputError("a process that writes weights was ended from outside; free some memory, and try again")
        if failed is not None:
            raise failed
        lost: dict[str, float] = {}
        whole: dict[str, float] = {}
        for done in (future.result() for future in self._futures):
            lost[done.tensor] = lost.get(done.tensor, 0.0) + done.lost
            whole[done.tensor] = whole.get(done.tensor, 0.0) + done.whole
        return {name: (lost[name] / whole[name]) ** 0.5 if whole[name] else 0.0 for name in lost}


@contextmanager
def filling(
    data: DataFile, checkpoint: Checkpoint, target: Target, tensors: Sequence[str], tally: Tally
) -> Iterator[Filling]:
    """Start to cast or round `tensors` of the checkpoint into the data file, and continue while the context does.

    When it is left with an error, Ctrl-C included, the workers end.
    """
    job = _Job(data, checkpoint, target)
    executor = _processes(job) if fills_by_processes(checkpoint.config) else None
    if executor is None:
        executor = ThreadPoolExecutor(os.cpu_count(), "fill", initializer=_begin, initargs=(job,))
    workers: list[Any] = []
    try:
        under_way = Filling(executor, tally)
        under_way.submit(list(_pieces(checkpoint.config, tensors)))
        workers = list((getattr(executor, "_processes", None) or {}).values())
        yield under_way
    except BaseException:
        if isinstance(executor, ThreadPoolExecutor):
            executor.shutdown(cancel_futures=True)
        else:
            executor.shutdown(kill_workers=True)
            _end(workers)
        raise
    executor.shutdown()


def _end(workers: Sequence[Any]) -> None:
    """End what loky left: without memory, its thread that should end them fails, and Python would wait for them."""
    for worker in workers:
        if worker.is_alive():
            worker.terminate() if sys.platform == "win32" else os.kill(worker.pid, signal.SIGKILL)
            worker.join()


def fills_by_processes(config: ModelConfig) -> bool:
    """Whether a model is large enough for that."""
    return config.num_parameters >= _WORTH_PROCESSES


def worker_processes() -> int:
    """Return how many processes fill the file of a large model."""
    return min(os.cpu_count() or 1, _MOST_PROCESSES)


def _processes(job: _Job) -> Any:
    # loky's workers, unlike multiprocessing's, do not import the caller's script again, so that needs no guard.
    from loky import ProcessPoolExecutor

    try:
        # NumPy's products, of a merged adapter, in several threads of each process would fight for the cores.
        environment = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        return ProcessPoolExecutor(
            worker_processes(), initializer=_begin_process, initargs=(job, os.getpid()), env=environment
        )
    except (OSError, ImportError) as error:  # no shared memory or semaphores here, as in some sandboxes
        _log.info("filling by threads, since processes cannot be started: %s", error)
        return None


_worker = threading.local()


def _begin(job: _Job) -> None:
    _worker.job = job


def _begin_process(job: _Job, parent: int) -> None:
    end_with(parent)
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    _begin(job)


def _work(piece: _Piece) -> _Done:
    """Read, cast or round, and write one piece."""
    job: _Job = _worker.job
    rows = job.checkpoint.read(piece.tensor, piece.rows)
    layout, first = job.data.layout, piece.rows.start
    written: dict[str, int] = {}
    if piece.tensor in layout.stored:
        written[piece.tensor] = job.data.write(piece.tensor, rows, first)
    stored = layout.quantized.get(piece.tensor)
    if stored is None:
        return _Done(piece.tensor, written)
    weight = quantize_rtn(rows, stored.scheme, job.target.io_dtype, threads=1)
    assert weight.squared_error is not None
    flat = rows.reshape(-1)
    written |= write_quantized(job.data, piece.tensor, weight, first)
    return _Done(piece.tensor, written, weight.squared_error, float(flat @ flat))


def write_quantized(data: DataFile, tensor: str, weight: QuantizedWeight, first_row: int = 0) -> dict[str, int]:
    """Write a quantized matrix, or its rows from `first_row` on; return the bytes written by initializer."""
    stored = data.layout.quantized[tensor]
    written = {
        stored.packed: data.write(stored.packed, weight.packed, first_row),
        stored.scales: data.write(stored.scales, weight.scales, first_row),
    }
    if name := stored.lookup_zero_points:
        zeros = weight.zero_points if weight.zero_points is not None else pack_codes(weight.zeros(), weight.scheme.bits)
        written[name] = data.write(name, zeros, first_row)
    return written


def _pieces(config: ModelConfig, tensors: Sequence[str]) -> Iterator[_Piece]:
    shapes = config.tensor_shapes()
    for tensor in tensors:
        rows, *rest = shapes[tensor]
        step = max(1, PIECE_BYTES // (math.prod(rest) * 4))
        for start in range(0, rows, step):
            yield _Piece(tensor, slice(start, min(start + step, rows)))


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
        plain_table = target.embedding == "gather" and tensor == EMBEDDING and not config.tie_embeddings
        if target.quantization is None or plain_table:
            bits = 16 if target.io_dtype == "float16" else 32
            found[tensor] = TensorSummary(shape, bits, None, None)
        else:
            scheme = target.quantization.scheme_for(tensor)
            report = dict(reports.get(tensor, {}))
            error = report.pop("relative_error", errors.get(tensor))
            found[tensor] = TensorSummary(shape, scheme.bits, scheme.block_size, scheme.symmetric, error, report)
    return found
