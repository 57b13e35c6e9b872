"""A package's second graph in ONNX Runtime: tokens of prompts and answers of many texts in one run.

The graph (`export.graph.decode`) takes the tokens of all rows one after another; attention alone sees rows. With its
int8 cache, and with a number of tokens that this machine's kernels treat alike, a token's logits do not depend on what
else is in the run. Which numbers those are is tried out when the graph is loaded.
"""

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...configs import EngineError, PackageError
from ...configs.errors import first_line
from ..package import Package
from ..providers.devices import device_identity
from ..providers.imports import import_onnxruntime
from .arena import Arena, CacheShape
from .cpu_options import cpu_options
from .layout import Bound, RowRun
from .padding import PADDINGS, Padding, Trial
from .prepacked import MachineCopy

DECODE_NAME = "decode.onnx"
LEAST_VERSION = "1.32"
"""The first ONNX Runtime whose attention takes several new tokens a row at different pasts."""
_CPU = "CPUExecutionProvider"
_LOG = logging.getLogger(__name__)
_DTYPES = {"tensor(int8)": np.int8, "tensor(float)": np.float32}
_TRIAL_TOKENS = 8
_TRIAL_CUTS = (3, 1, 2, 4)
"""Where the tokens are cut in two, so that each smaller number of them is run; what fails soonest comes first."""


def decodes_here() -> bool:
    """Whether the installed ONNX Runtime knows the operators of `decode.onnx`."""
    major, minor = import_onnxruntime().__version__.split(".")[:2]
    return (int(major), int(minor)) >= tuple(map(int, LEAST_VERSION.split(".")))


def _copy_of(path: Path, options: Any) -> Any:
    """Return the session of a copy; None where it does not load."""
    try:
        return import_onnxruntime().InferenceSession(str(path), options, providers=[_CPU])
    except Exception as error:  # onnxruntime's own errors have no common base but this
        _LOG.debug("copy: %s", first_line(error))
        return None


def _hashes(package: Package) -> list[str]:
    """Return the hashes that the manifest has of a package's graph and weights, or sizes and times without one."""
    if package.manifest:
        return sorted(f"{name} {entry.sha256}" for name, entry in package.manifest.files.items() if ".onnx" in name)
    states = {path.name: path.stat() for path in package.folder.glob("*.onnx*")}
    return sorted(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states.items())


class PackedGraph:
    """`decode.onnx` of a package, loaded on the CPU."""

    def __init__(
        self,
        package: Package,
        *,
        threads: int | None = None,
        copy: MachineCopy | None = None,
        trial: Trial | None = None,
        takes_turns: bool = False,
    ) -> None:
        """Load it, and find out which numbers of tokens give the same logits for each.

        Args:
            package: the package.
            threads: threads of one operator; by default the physical cores.
            copy: one of the graph that was made for this machine; where it does not load, the package's own is taken.
            trial: what trying that out showed here before, which takes as long as a dozen steps.
            takes_turns: whether another graph runs on the same cores between this one's runs.

        Raises:
            PackageError: there is none, or ONNX Runtime here cannot run it.

        """
        ort = import_onnxruntime()
        path = package.folder / DECODE_NAME
        if not path.is_file():
            raise PackageError(f"{package.name} has no {DECODE_NAME}, which decodes several texts together")
        options = cpu_options(package.layer_bytes, threads, takes_turns=takes_turns)
        options.log_severity_level = 4  # what it cannot run is said in our own words
        copied = _copy_of(copy.graph, options) if copy else None
        try:
            self._inference: Any = copied or ort.InferenceSession(str(path), options, providers=[_CPU])
        except Exception as error:  # onnxruntime's own errors have no common base but this
            least = "" if decodes_here() else f" ({path.name} needs {LEAST_VERSION} or later)"
            raise PackageError(
                f"{path} cannot be loaded by onnxruntime {ort.__version__}{least}: {first_line(error)}"
            ) from error
        self.is_copy = copied is not None
        """Whether the copy was loaded."""
        self.int8 = self.is_copy and copy is not None and copy.int8
        """Whether it multiplies integers."""
        if copy and copy.int8 and not self.int8:
            trial = None  # it was the copy's
        self.name = f"onnxruntime {ort.__version__}"
        self.identity = (*_hashes(package), self.name, device_identity("cpu"), *(["int8"] if self.int8 else []))
        """What decides the bits that it computes: the package's files, ONNX Runtime's version, the processor."""
        self.vocab_size = package.contract.vocab_size
        self.switch = package.longrope_switch
        self._past, self._present = package.contract.past_names(), package.contract.present_names()
        kinds = {value.name: value.type for value in self._inference.get_inputs()}
        contract = package.contract
        self.shape = CacheShape(
            contract.num_layers, contract.num_kv_heads, contract.head_dim, _DTYPES[kinds[self._past[0]]]
        )
        self._lock = threading.Lock()
        self.padding = trial.padding if trial else None
        """What makes a token's logits the same in every run; None where nothing does."""
        self.trial_seconds = dict(trial.seconds) if trial else {}
        """What a step of so many tokens took at its best, while a text is short."""
        if trial is None:
            self.padding = self._settle_padding()
        self.trial = trial or Trial(self.padding, dict(self.trial_seconds))
        """What trying it out showed, here or before."""

    def run(self, arena: Arena, rows: Sequence[RowRun]) -> list[np.ndarray]:
        """Run the graph on further tokens of several texts.

        Args:
            arena: the cache, which the tokens' keys and values are added to.
            rows: in any order, of different slots, all of them before LongRoPE's switch or all beyond.

        Returns:
            For each row its logits, float32 [row.logits, vocabulary].

        Raises:
            EngineError: the run failed; what these texts have in the cache is of no use any more.

        """
        with self._lock:  # several threads may have texts of their own
            return self._run(arena, rows)

    def _run(self, arena: Arena, rows: Sequence[RowRun]) -> list[np.ndarray]:
        ordered = sorted(rows, key=lambda row: row.slot)
        first, count = ordered[0].slot, ordered[-1].slot - ordered[0].slot + 1
        bound = self._bound(arena, first, count)
        layout = bound.lay_out(ordered, count, self.filled)
        layout.fill(ordered, self.switch)
        logits = np.empty((1, layout.logits, self.vocab_size), np.float32)
        bound.binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            self._inference.run_with_iobinding(bound.binding)
        except RuntimeError as error:
            raise EngineError(
                f"{self.name} failed while running {sum(len(row.tokens) for row in rows)} tokens of {len(rows)} texts: "
                f"{first_line(error)}"
            ) from error
        wanted = {row.slot: logits[0, place] for row, place in zip(ordered, layout.wanted, strict=True)}
        return [wanted[row.slot] for row in rows]

    def filled(self, count: int) -> int:
        """Return how many tokens a run of so many has, with those that fill it up."""
        return count + (self.padding.missing(count) if self.padding else 0)

    def _bound(self, arena: Arena, first: int, count: int) -> Bound:
        """Return the binding of neighbouring slots, which stays the same from run to run until the arena moves."""
        if (first, count) not in arena.bindings:
            binding = self._inference.io_binding()
            shape = (count, arena.shape.kv_heads, arena.length, arena.shape.head_dim)
            offset = first * math.prod(shape[1:]) * np.dtype(arena.shape.dtype).itemsize
            for past, present, buffer in zip(self._past, self._present, arena.buffers, strict=True):
                memory = ("cpu", 0, arena.shape.dtype, shape, buffer.ctypes.data + offset)
                binding.bind_input(past, *memory)
                binding.bind_output(present, *memory)
            arena.bindings[first, count] = Bound(binding)
        return arena.bindings[first, count]

    def _settle_padding(self) -> Padding | None:
        """Return what makes a token's logits the same in every run on this machine.

        Raises:
            PackageError: the graph does not run here.

        """
        tokens = [(7 + 13 * i) % self.vocab_size for i in range(_TRIAL_TOKENS)]
        try:
            self.padding = Padding(1, _TRIAL_TOKENS)
            whole = [next(self._trial(tokens, 0)) for _ in "12"][-1]  # the first run's time is that of a cold start
            for padding in PADDINGS:
                self.padding = padding
                pieces = (piece for cut in _TRIAL_CUTS for piece in self._trial(tokens, cut))
                expected = (piece for cut in _TRIAL_CUTS for piece in (whole[:cut], whole[cut:]))
                if all(map(np.array_equal, pieces, expected)):
                    return padding
        except EngineError as error:
            raise PackageError(f"{DECODE_NAME} does not run: {error}") from error
        return None

    def _trial(self, tokens: Sequence[int], cut: int) -> Iterator[np.ndarray]:
        """Run a text in two pieces, or in one where the cut is 0, and give the logits of each."""
        arena = Arena(self.shape, 1, len(tokens))
        for start, piece in ((0, tokens[:cut]), (cut, tokens[cut:])):
            if piece:
                yield self._timed(arena, RowRun(0, start, piece, len(piece)))

    def _timed(self, arena: Arena, row: RowRun) -> np.ndarray:
        begun = time.perf_counter()
        (logits,) = self.run(arena, [row])
        seconds, count = time.perf_counter() - begun, self.filled(len(row.tokens))
        self.trial_seconds[count] = min(seconds, self.trial_seconds.get(count, seconds))
        return logits
