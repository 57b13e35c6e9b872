"""What threads beside the engine's do for jobs, so that no answer waits for it."""

import concurrent.futures
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Generic, TypeVar

_R = TypeVar("_R")
_W = TypeVar("_W")
_POLL_SECONDS = 0.005


class Pending(Generic[_W, _R]):
    """Jobs that wait for results of such a thread. For use by one thread."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[_W, Future[_R]]] = {}

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._entries)

    def add(self, job: int, what: _W, future: "Future[_R]") -> None:
        """Let a job wait.

        Args:
            job: its number.
            what: comes back with the result.
            future: gets the result.

        """
        self._entries[job] = what, future

    def drop(self, job: int) -> None:
        """Forget a job that nobody waits for any more; what no other job waits for either does not begin."""
        if entry := self._entries.pop(job, None):
            future = entry[1]
            if not any(other is future for _, other in self._entries.values()):
                future.cancel()

    def finished(self, *, wait: bool) -> "Iterator[tuple[_W, Future[_R]]]":
        """Return what came with the jobs whose results, or errors, are there.

        Args:
            wait: whether to wait for some, for milliseconds.

        """
        if wait and self._entries:
            futures = [future for _, future in self._entries.values()]
            concurrent.futures.wait(futures, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED)
        for job, (what, future) in list(self._entries.items()):
            if future.done():
                del self._entries[job]
                yield what, future
