"""What the web side knows of an engine, wherever that runs: jobs go in, and their events come back."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from .messages import Accepted, CacheState, Client, Event, Job, Ready, Refused, Tokenized
from .telemetry import Operation

State = Literal["loading", "ready", "restarting", "stopped"]


class Answers:
    """A job that was handed over: its events as they come."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.started = time.monotonic()
        self._events: list[Event] = []
        self._accepted: asyncio.Future[Accepted | Refused | Tokenized] = asyncio.get_running_loop().create_future()
        self._arrived = asyncio.Event()
        self.operation: Operation | None = None
        """What is told to OpenTelemetry of it."""
        self.refused = ""
        """Why it ended without an answer: a `RefusalKind`."""
        self.listener: Callable[[], None] | None = None
        """Called after each event, instead of waking whoever waits in `next`."""

    def put(self, event: Accepted | Tokenized | Event) -> None:
        """Add an event; the first is `Accepted`, `Tokenized` or `Refused`."""
        if isinstance(event, Refused):
            self.refused = event.kind
        if not self._accepted.done():
            assert isinstance(event, Accepted | Refused | Tokenized)
            self._accepted.set_result(event)
            return
        assert not isinstance(event, Accepted | Tokenized)
        self._events.append(event)
        if self.listener:
            self.listener()
        else:
            self._arrived.set()

    async def accepted(self) -> Accepted | Refused | Tokenized:
        """Wait for the first event: whether the engine takes the job."""
        return await self._accepted

    async def next(self) -> list[Event]:
        """Wait for more events, and return all that there are; after a `Refused`, or the last `Finished`, is none."""
        await self._arrived.wait()
        return self.take()

    def take(self) -> list[Event]:
        """Return the events that came since."""
        self._arrived.clear()
        events, self._events = self._events, []
        return events


class Engine(Protocol):
    """An engine as the web side uses it. All methods are for the event loop that `start` ran in."""

    @property
    def state(self) -> State:
        """Whether it takes jobs: only where it is `ready`."""
        ...

    @property
    def info(self) -> Ready | None:
        """What the model is; None until it was loaded for the first time."""
        ...

    @property
    def restarts(self) -> int:
        """How often what answers was lost and replaced."""
        ...

    @property
    def cache(self) -> CacheState | None:
        """What is kept of texts that ended; None where that is not known here."""
        ...

    @property
    def jobs(self) -> int:
        """Jobs handed over and not yet through."""
        ...

    @property
    def clients(self) -> Iterable[Client]:
        """Whose they are: one entry for each job."""
        ...

    async def start(self) -> None:
        """Start it; does not wait until it is ready."""
        ...

    async def stop(self) -> None:
        """End it, and every job that is not through."""
        ...

    def submit(self, job: Job) -> Answers:
        """Hand a job over; its `id` is set here. Raises EngineError where the engine is not ready."""
        ...

    def cancel(self, answers: Answers) -> None:
        """Give a job up; does nothing where it is through."""
        ...
