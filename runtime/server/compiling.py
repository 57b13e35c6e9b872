"""Guidance is compiled in a thread beside the engine's: it may take seconds, and no other answer waits for it.

`llguidance` lets other threads run meanwhile. A copy of what is compiled takes less than a millisecond. ONNX Runtime
GenAI compiles where it makes a sequence, in the engine's thread: a server leaves that to it only without `llguidance`.
"""

import concurrent.futures
from collections import OrderedDict
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from ..decoding.engine import Guidance
from ..decoding.guide import Guide, Guides
from .beside import Pending

_W = TypeVar("_W")
_AT_ONCE_SECONDS = 0.005
"""What a step of the engine takes, about; most guidance is compiled in less."""
_REST_SECONDS = 0.001


class Compiler(Generic[_W]):
    """Compiles the guidance of jobs. For use by one thread."""

    def __init__(self, guides: Guides, kept: int) -> None:
        """Begin with nothing known.

        Args:
            guides: of the model.
            kept: guides to keep for those that ask for the same; each can take tens of megabytes.

        """
        self._guides = guides
        self._kept = kept
        self._thread = ThreadPoolExecutor(1, "guidance")
        self._known: OrderedDict[Guidance, Future[Guide]] = OrderedDict()
        self._rested = False
        self.pending: Pending[_W, Guide] = Pending()
        """Jobs whose guidance is being compiled."""

    def start(self, job: int, guidance: Guidance, what: _W) -> bool:
        """Begin to compile the guidance of a job; return whether that takes longer than a step of the engine.

        Args:
            job: its number.
            guidance: it.
            what: comes with the job out of `pending`, where it takes longer.

        Raises:
            UsageError: it is not understood.

        """
        future = self._compiled(guidance)
        if not self.pending:  # else the thread is busy
            concurrent.futures.wait([future], _AT_ONCE_SECONDS)
        if future.done():
            future.result()
            return False
        self.pending.add(job, what, future)
        return True

    def guide(self, guidance: Guidance) -> Generator[None, None, Guide]:
        """Return a guide through one answer; yields where it has to be compiled again.

        Raises:
            UsageError: it is not understood.

        """
        while True:
            future = self._compiled(guidance)
            while not future.done():
                if not self._rested:  # once in a step, however many wait
                    concurrent.futures.wait([future], _REST_SECONDS)
                    self._rested = True
                yield
            if not future.cancelled():  # with a job that asked for the same, and was given up
                return future.result().copy()

    def begin_step(self) -> None:
        """Note that the engine begins another step."""
        self._rested = False

    def _compiled(self, guidance: Guidance) -> "Future[Guide]":
        future = self._known.get(guidance)
        if future is None or future.cancelled() or (future.done() and future.exception()):
            future = self._known[guidance] = self._thread.submit(self._guides.guide, guidance)
        self._known.move_to_end(guidance)
        done = [known for known, other in self._known.items() if other.done()]
        for known in done[: max(0, len(done) - self._kept)]:
            del self._known[known]
        return future
