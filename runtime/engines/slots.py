"""One KV cache for several texts, in plain ONNX Runtime: each prompt runs alone, single tokens run together.

GroupQueryAttention takes a length for each row, but several rows only with one new token each. So a prompt runs on its
slot of the cache alone, and single tokens wait until somebody asks for logits: then all that wait run at once. Past and
present are the same memory, so that no step copies the cache.
"""

import math
import threading
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from ...configs import EngineError, UsageError
from ...configs.errors import first_line
from ..decoding.engine import GuidedDraws
from ..providers.imports import import_onnxruntime
from .session import CACHE_DEVICES, LogitsSession


class SlotPool:
    """A KV cache of several slots of one length, and the sequences in them; is an `Engine` that can open so many."""

    def __init__(self, session: LogitsSession, slots: int, capacity: int, *, name: str, prefill_chunk: int) -> None:
        """Reserve the cache.

        Args:
            session: what runs the graph.
            slots: sequences that can be open at a time.
            capacity: tokens that each has room for.
            name: what errors call the engine.
            prefill_chunk: tokens of a prompt to append at a time.

        Raises:
            EngineError: it cannot be reserved.

        """
        self.name = name
        self.continuous = True
        self.chooses = False
        self.guides = False
        self.prefill_chunk = prefill_chunk
        self.capacity = capacity
        self._session = session
        self._lock = threading.RLock()
        self._free = list(range(slots))
        self._open: dict[int, SlotSequence] = {}
        self._bindings: dict[tuple[int, int], Any] = {}
        self.runs: list[int] = []
        """Rows of each run of the graph so far."""
        try:
            self._cache = _Cache(session, slots, capacity)
        except (MemoryError, RuntimeError) as error:
            problem = first_line(error)
            raise EngineError(f"a KV cache of {slots} times {capacity} tokens cannot be reserved: {problem}") from error

    def open(self, capacity: int, guided: GuidedDraws | None = None) -> "SlotSequence":
        """Start a sequence in a free slot; see `Engine.open`."""
        if guided:
            raise UsageError(f"{self.name} takes guidance as a mask, not when a sequence is opened")
        with self._lock:
            if not self._free or capacity > self.capacity:
                free = f"{len(self._free)} slots of {self.capacity} tokens are free"
                raise EngineError(f"there is no room for a sequence of {capacity} tokens: {free}")
            slot = self._free.pop(0)
            self._open[slot] = SlotSequence(self, slot)
            return self._open[slot]

    def run(self, sequence: "SlotSequence", tokens: Sequence[int]) -> None:
        """Run the graph on further tokens of one sequence."""
        with self._lock:
            ids = np.asarray(tokens, dtype=np.int64)[None]
            self._run([sequence], ids)

    def run_waiting(self) -> None:
        """Run the graph on the tokens that wait, those of all sequences together.

        With LongRoPE, texts beyond the switch run apart from those before it: the graph takes its rotary factors by the
        longest row.
        """
        with self._lock:
            self._close_up()
            waiting = [self._open[slot] for slot in sorted(self._open) if self._open[slot].waiting]
            switch = self._session.longrope or math.inf
            # Neighbours only, since a run takes one piece of the cache.
            for _, group in groupby(enumerate(waiting), lambda at: (at[1].slot - at[0], at[1].length >= switch)):
                rows = [sequence for _, sequence in group]
                self._run(rows, np.asarray([[row.queued] for row in rows], dtype=np.int64))

    def give_back(self, sequence: "SlotSequence") -> None:
        """Make a sequence's slot free."""
        with self._lock:
            if self._open.get(sequence.slot) is sequence:
                del self._open[sequence.slot]
                self._free = sorted([*self._free, sequence.slot])

    def close(self) -> None:
        """Give the cache's memory back."""
        with self._lock:
            self._bindings.clear()
            self._cache.buffers.clear()

    def _close_up(self) -> None:
        """Move sequences into free slots before them, so that those which wait are neighbours."""
        while self._cache.movable and self._free and self._open and self._free[0] < max(self._open):
            source, target = max(self._open), self._free[0]
            sequence = self._open.pop(source)
            self._cache.move(source, target, sequence.length)
            self._open[target], sequence.slot = sequence, target
            self._free = sorted([*self._free[1:], source])

    def _run(self, rows: Sequence["SlotSequence"], ids: np.ndarray) -> None:
        starts = [row.length for row in rows]
        session = self._session
        binding = self._binding(rows[0].slot, len(rows))
        for name, value in session.feeds(ids, starts).items():
            binding.bind_cpu_input(name, value)
        # Bound anew each time: a second run would take the first one's array, whose shape may differ.
        logits_name = session.contract.outputs["logits"]
        binding.bind_output(logits_name, "cpu")
        self.runs.append(len(rows))
        try:
            session.inference.run_with_iobinding(binding)
        except RuntimeError as error:
            failure = EngineError(
                f"{self.name} failed while running {ids.shape[1]} tokens after {max(starts)}"
                f"{f' in {len(rows)} rows' if len(rows) > 1 else ''}: {first_line(error)}"
            )
            failure.__cause__ = error
            for row in rows:
                row.fail(failure)
            return
        logits = binding.get_outputs()[0].numpy().astype(np.float32, copy=False)
        for row, values in zip(rows, logits, strict=True):
            row.take(ids.shape[1], values)

    def _binding(self, slot: int, rows: int) -> Any:
        """Return the binding of neighbouring slots' cache, which stays the same from run to run."""
        if (slot, rows) not in self._bindings:
            session = self._session
            binding = session.inference.io_binding()
            binding.bind_output(session.contract.outputs["logits"], "cpu")  # first, so that its index is known
            self._cache.bind(binding, slot, rows)
            self._bindings[slot, rows] = binding
        return self._bindings[slot, rows]


class SlotSequence:
    """One text in a slot. A single token after others waits for the next `logits`, of this sequence or of another."""

    def __init__(self, pool: SlotPool, slot: int) -> None:
        self._pool = pool
        self._logits = np.empty((0, 0), dtype=np.float32)
        self._failure: EngineError | None = None
        self.slot = slot
        self.capacity = pool.capacity
        self.length = 0
        """Tokens in the cache."""
        self.queued: int | None = None
        """The token that waits."""

    @property
    def waiting(self) -> bool:
        """Whether a token waits to be run together with others'; see `TokenSequence.waiting`."""
        return self.queued is not None

    def append(self, tokens: Sequence[int]) -> None:
        """Run the graph on more tokens, or let a single one wait; see `TokenSequence.append`."""
        self._settle()
        if not 0 < len(tokens) <= self.capacity - self.length:
            raise EngineError(f"{len(tokens)} tokens after {self.length} do not fit into {self.capacity}")
        if len(tokens) == 1 and self.length:
            self.queued = tokens[0]
        else:
            self._pool.run(self, tokens)
            self._settle()

    def logits(self) -> np.ndarray:
        """Return the last token's logits; see `TokenSequence.logits`."""
        return self.run_logits()[-1]

    def run_logits(self) -> np.ndarray:
        """Return the last run's logits; see `TokenSequence.run_logits`."""
        self._settle()
        return self._logits

    def choose_token(self) -> int:
        """Refuse: there is no guidance here."""
        raise EngineError("plain ONNX Runtime chooses no tokens")

    def rewind(self, length: int) -> None:
        """Forget all but the first tokens; see `TokenSequence.rewind`."""
        if length > self.length + self.waiting:
            raise EngineError(f"cannot rewind {self.length + self.waiting} tokens to {length}")
        self._settle()
        self.length = length

    def close(self) -> None:
        """Make the slot free."""
        self.queued = None
        self._pool.give_back(self)

    def take(self, count: int, logits: np.ndarray) -> None:
        """Note that `count` tokens were run, and their logits, float32 [count or 1, vocabulary]."""
        self.length, self.queued, self._logits = self.length + count, None, logits

    def fail(self, failure: EngineError) -> None:
        """Note that a run failed."""
        self.queued, self._failure = None, failure

    def _settle(self) -> None:
        if self.waiting:
            self._pool.run_waiting()
        if self._failure:
            raise self._failure


class _Cache:
    """Keys and values of every layer, [slots, KV heads, capacity, head size] each, on the provider's device."""

    def __init__(self, session: LogitsSession, slots: int, capacity: int) -> None:
        contract = session.contract
        self._device = CACHE_DEVICES.get(session.provider, "cpu")
        self._number = session.device if self._device != "cpu" else 0
        self._dtype = session.io_dtype
        self._row = (contract.num_kv_heads, capacity, contract.head_dim)
        self._names = list(zip(contract.past_names(), contract.present_names(), strict=True))
        self.movable = self._device == "cpu"
        """Whether `move` can be used."""
        self.buffers: list[Any] = [self._reserve(slots) for _ in self._names]

    def _reserve(self, slots: int) -> Any:
        zeros = np.zeros((slots, *self._row), dtype=self._dtype)  # pages of memory that nothing is written to take none
        if self.movable:
            return zeros
        return import_onnxruntime().OrtValue.ortvalue_from_numpy(zeros, self._device, self._number)

    def bind(self, binding: Any, slot: int, rows: int) -> None:
        """Bind neighbouring slots as past and present both."""
        offset = slot * math.prod(self._row) * np.dtype(self._dtype).itemsize
        for (past, present), buffer in zip(self._names, self.buffers, strict=True):
            address = buffer.ctypes.data if self.movable else buffer.data_ptr()
            memory = (self._device, self._number, self._dtype, (rows, *self._row), address + offset)
            binding.bind_input(past, *memory)
            binding.bind_output(present, *memory)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot's first `length` tokens to another slot."""
        for buffer in self.buffers:
            buffer[target, :, :length] = buffer[source, :, :length]
