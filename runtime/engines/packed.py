"""A package's second graph in ONNX Runtime: tokens of prompts and answers of many texts in one run.

The graph (`export.graph.decode`) takes the tokens of all rows one after another; attention alone sees rows. With its
int8 cache and an even number of tokens, or any where the kernels allow, a token's logits do not depend on what else is
in the run: `settle_padding` finds out on this machine which numbers those are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...configs import EngineError, PackageError
from ..package import Package
from ..providers.choice import first_line, import_onnxruntime
from ..providers.hardware import default_threads
from .arena import Arena, CacheShape

DECODE_NAME = "decode.onnx"
_DTYPES = {"tensor(int8)": np.int8, "tensor(float)": np.float32}
_PADDINGS = (1, 2, 4, 8)
_TRIAL_TOKENS = 24
_EVERY = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 23)


@dataclass(frozen=True)
class RowRun:
    """What one run does to one text."""

    slot: int
    start: int
    """Tokens of it in the cache already."""
    tokens: Sequence[int]
    logits: int = 1
    """Of how many tokens, the last ones, logits are wanted."""
    beyond: bool = False
    """Whether LongRoPE's long factors hold for this text."""

    @property
    def stop(self) -> int:
        """Tokens in the cache after the run."""
        return self.start + len(self.tokens)


class PackedGraph:
    """`decode.onnx` of a package, loaded on the CPU."""

    def __init__(self, package: Package, *, threads: int | None = None) -> None:
        """Load it, and find out which numbers of tokens give the same logits for each.

        Raises:
            PackageError: there is none, or ONNX Runtime here cannot run it.

        """
        ort = import_onnxruntime()
        path = package.folder / DECODE_NAME
        if not path.is_file():
            raise PackageError(f"{package.name} has no {DECODE_NAME}, which decodes several texts together")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        options.log_severity_level = 4  # what it cannot run is said in our own words
        try:
            self._inference: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own errors have no common base but this
            raise PackageError(
                f"{path.name} needs ONNX Runtime 1.32 or later, and {ort.__version__} is here: {first_line(error)}"
            ) from error
        self.name = f"onnxruntime {ort.__version__}"
        self.vocab_size = package.contract.vocab_size
        self.switch = package.longrope_switch
        self._past, self._present = package.contract.past_names(), package.contract.present_names()
        kinds = {value.name: value.type for value in self._inference.get_inputs()}
        contract = package.contract
        self.shape = CacheShape(
            contract.num_layers, contract.num_kv_heads, contract.head_dim, _DTYPES[kinds[self._past[0]]]
        )
        self._bindings: dict[tuple[int, int], Any] = {}
        self._bound: Arena | None = None
        self._bound_to = 0
        self.padding: int | None = 1
        """A token's logits are the same in each run whose tokens are a multiple of this; None where no number does."""
        self.padding = self._settle_padding()

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
        ordered = sorted(rows, key=lambda row: row.slot)
        first, count = ordered[0].slot, ordered[-1].slot - ordered[0].slot + 1
        feeds, wanted = self._feeds(ordered, first, count)
        binding = self._binding(arena, first, count)
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        logits = np.empty((1, len(feeds["logits_index"]), self.vocab_size), np.float32)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            self._inference.run_with_iobinding(binding)
        except RuntimeError as error:
            raise EngineError(
                f"{self.name} failed while running {len(feeds['input_ids'][0])} tokens of {len(rows)} texts: "
                f"{first_line(error)}"
            ) from error
        return [logits[0, wanted[row.slot] : wanted[row.slot] + row.logits] for row in rows]

    def _feeds(self, rows: Sequence[RowRun], first: int, count: int) -> tuple[dict[str, np.ndarray], dict[int, int]]:
        """Return the graph's inputs but the cache, and for each slot the place of its first logits."""
        lengths, starts = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for row in rows:
            lengths[row.slot - first], starts[row.slot - first] = len(row.tokens), row.start
        begins = np.cumsum(lengths) - lengths
        places = np.arange(lengths.max())
        # A place without a token repeats the row's last one, or any: nothing of it is read.
        pad = np.minimum(begins[:, None] + np.minimum(places, np.maximum(lengths[:, None] - 1, 0)), lengths.sum() - 1)
        unpad = [index * len(places) + np.arange(length) for index, length in enumerate(lengths) if length]
        tokens = [token for row in rows for token in row.tokens]
        wanted, index = dict[int, int](), list[int]()
        for row in rows:
            wanted[row.slot] = len(index)
            stop = int(begins[row.slot - first]) + len(row.tokens)
            index += range(stop - row.logits, stop)
        more, more_logits = self._missing(len(tokens)), self._missing(max(len(index), 1))
        total = max(row.stop for row in rows)
        if rows[0].beyond and self.switch is not None:
            total = max(total, self.switch + 1)
        feeds = {
            # Tokens that fill up go through the linear layers alone: no row of the attention has them.
            "input_ids": np.asarray([tokens + [0] * more], np.int64),
            "pad_index": pad.astype(np.int64),
            "unpad_index": np.concatenate([*unpad, np.zeros(more, np.int64)]),
            "logits_index": np.asarray((index or [0]) + [0] * more_logits, np.int64),
            "query_seqlens": lengths.astype(np.int32),
            "seqlens_k": np.maximum(starts + lengths - 1, 0).astype(np.int32),
            "total_length": np.asarray([total], np.int64),
        }
        return feeds, wanted

    def _missing(self, count: int) -> int:
        return -count % (self.padding or 1)

    def _binding(self, arena: Arena, first: int, count: int) -> Any:
        """Return the binding of neighbouring slots, which stays the same from run to run until the arena moves."""
        if self._bound is not arena or self._bound_to != arena.buffers[0].ctypes.data:
            self._bindings.clear()
            self._bound, self._bound_to = arena, arena.buffers[0].ctypes.data
        if (first, count) not in self._bindings:
            binding = self._inference.io_binding()
            shape = (count, arena.shape.kv_heads, arena.capacity, arena.shape.head_dim)
            offset = first * math.prod(shape[1:]) * np.dtype(arena.shape.dtype).itemsize
            for past, present, buffer in zip(self._past, self._present, arena.buffers, strict=True):
                memory = ("cpu", 0, arena.shape.dtype, shape, buffer.ctypes.data + offset)
                binding.bind_input(past, *memory)
                binding.bind_output(present, *memory)
            self._bindings[first, count] = binding
        return self._bindings[first, count]

    def _settle_padding(self) -> int | None:
        """Return of what the number of tokens has to be a multiple, for a token's logits to depend on it alone.

        Raises:
            PackageError: the graph does not run here.

        """
        tokens = [(7 + 13 * i) % self.vocab_size for i in range(_TRIAL_TOKENS)]
        try:
            self.padding = _TRIAL_TOKENS
            whole = self._in_pieces(tokens, len(tokens))
            for padding in _PADDINGS:
                self.padding = padding
                if all(np.array_equal(self._in_pieces(tokens, size), whole) for size in _EVERY):
                    return padding
        except EngineError as error:
            raise PackageError(f"{DECODE_NAME} does not run: {error}") from error
        return None

    def _in_pieces(self, tokens: Sequence[int], size: int) -> np.ndarray:
        """Return all logits of a text that is run so many tokens at a time, beside another text in the other rows."""
        arena = Arena(self.shape, 3, 2 * len(tokens))
        logits = []
        for start in range(0, len(tokens), size):
            piece = tokens[start : start + size]
            rows = [RowRun(1, start, piece, len(piece))]
            if start and size % 2:  # company, in a slot before it and one behind it by turns
                rows.append(RowRun(2 * (start % 4 > 1), 0, tokens[::-1][: 1 + start % 5], 1))
            logits.append(self.run(arena, rows)[0])
        return np.concatenate(logits)
