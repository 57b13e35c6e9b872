"""Many models behind one server: each is loaded when it is first asked for, and unloaded when it has to make room."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.applications import Starlette

from ...configs.sizes import size
from .app import create_app
from .errors import ApiError, queue_full
from .metrics import Metrics
from .process import EngineProcess, LoadError
from .settings import Settings

_LOG = logging.getLogger(__name__)
_LONGEST_SWEEP = 30.0
_PATIENCE = 5.0
"""Seconds that a model waits for others to be idle, before one of them takes no more requests."""
_REMEMBERED = (5.0, 60.0)
"""Seconds that a failure to load is remembered, at least and at most; in between, as long as the load took."""


@dataclass(frozen=True)
class Offer:
    """A model that can be had."""

    name: str
    loader: Callable[[], Any]
    """Returns the `Model`, in the engine's process; has to be picklable."""
    needs: int
    """Bytes of memory that it is expected to take."""
    aliases: tuple[str, ...] = ()
    created: float = 0.0
    """Seconds since 1970."""
    target: str = ""


@dataclass
class Loaded:
    """A model in memory: its engine, and the application that answers for it."""

    offer: Offer
    engine: EngineProcess
    app: Starlette
    active: int = 0
    """Requests under way."""
    used: float = field(default_factory=time.monotonic)
    """When the last one ended, by `time.monotonic`."""
    leaving: bool = False
    """Whether it takes no more requests, and is unloaded when those under way end."""


@dataclass
class _Load:
    """A model that is to be loaded: when its turn comes, for all requests that wait for it then."""

    requests: int = 0
    task: "asyncio.Task[Loaded] | None" = None


@dataclass(frozen=True)
class _Failure:
    """A model that could not be loaded; nobody tries again before `until`, by `time.monotonic`."""

    offer: Offer
    message: str
    until: float

    def error(self) -> ApiError:
        return ApiError(500, self.message, code="model_not_loaded")


class Pool:
    """The models of one server. All methods are for one event loop."""

    def __init__(
        self,
        offers: Callable[[], Sequence[Offer]],
        settings: Settings,
        metrics: Metrics,
        *,
        free: Callable[[], int | None] = lambda: None,
        notify: Callable[[str], None] = _LOG.info,
    ) -> None:
        """Begin with none loaded.

        Args:
            offers: returns the models that can be had, as they are now; called in threads.
            settings: of the server.
            metrics: takes what there is to count of all of them.
            free: returns the bytes of memory that can be taken; None where that is not known.
            notify: called with a line before a model is loaded or unloaded.

        """
        self._offers = offers
        self._settings = settings
        self._metrics = metrics
        self._free = free
        self._notify = notify
        self.loaded: dict[str, Loaded] = {}
        self._turn = asyncio.Lock()
        self._ended = asyncio.Event()  # set when a request ends
        self._loads: dict[str, _Load] = {}
        self._failures: dict[str, _Failure] = {}
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, preload: Sequence[str] = ()) -> None:
        """Load what is to be there from the beginning, and look from time to time for what nobody uses.

        Raises:
            ApiError: a model of these is not there, or cannot be loaded.

        """
        for name in preload:
            async with self.use(name):
                pass
        if self._settings.keep_alive >= 0:
            self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Unload all."""
        if self._sweeper:
            self._sweeper.cancel()
        loads = [load.task for load in self._loads.values() if load.task]
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        await asyncio.gather(*(entry.engine.stop() for entry in self.loaded.values()))
        self.loaded.clear()

    def end_jobs(self, message: str) -> None:
        """Refuse every job of every model that is not through."""
        for entry in self.loaded.values():
            entry.engine.end_jobs(message)

    async def offers(self) -> Sequence[Offer]:
        """Return the models that can be had; the store is read in a thread, as disks may be slow."""
        return await asyncio.to_thread(self._offers)

    async def find(self, name: str | None) -> Offer:
        """Return the model of a name or an alias; without one, the only one that there is or that is loaded.

        Raises:
            ApiError: there is no such model, or none was named where there are several.

        """
        for entry in self.loaded.values():  # the store is not read for each request
            if name in (entry.offer.name, *entry.offer.aliases):
                return entry.offer
        offers = await self.offers()
        known = ", ".join(offer.name for offer in offers) or "none"
        if name is None:
            candidates = [entry.offer for entry in self.loaded.values()] or offers
            if len(candidates) == 1:
                return candidates[0]
            raise ApiError(400, f"model must be named, as there are several: {known}", param="model")
        for wanted in (name, name.removesuffix(":latest")):  # as Ollama's clients write it
            for offer in offers:
                if wanted in (offer.name, *offer.aliases):
                    return offer
        raise ApiError(
            404, f"there is no model {name!r:.80}; there are: {known}", param="model", code="model_not_found"
        )

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[Loaded]:
        """Yield a model in memory, which stays there meanwhile; it is loaded where it is not.

        Raises:
            ApiError: there is no such model, it cannot be loaded, there is no room, or too many wait for room.

        """
        offer = await self.find(name)
        entry = self.loaded.get(offer.name)
        if entry is None or entry.leaving or entry.engine.state == "stopped":
            entry = await self._when_loaded(offer)
        else:
            entry.active += 1
        try:
            yield entry
        finally:
            await self._release(entry)

    async def _release(self, entry: Loaded) -> None:
        """Note that a request ended."""
        entry.active -= 1
        entry.used = time.monotonic()
        self._ended.set()
        if self._settings.keep_alive == 0 and not entry.active:
            await self._unload(entry, "nobody uses it")

    async def _when_loaded(self, offer: Offer) -> Loaded:
        """Wait until a model is loaded, with one more request under way; models are loaded in the order they came."""
        if failure := self._failures.get(offer.name):
            if failure.offer == offer and time.monotonic() < failure.until:
                raise failure.error()
            del self._failures[offer.name]
        waiting = sum(load.requests for load in self._loads.values())
        if waiting >= self._settings.queue:
            raise queue_full(f"{waiting} requests wait for a model to be loaded, which is the limit")
        load = self._loads.setdefault(offer.name, _Load())
        task = load.task = load.task or asyncio.create_task(self._load_in_turn(offer, load))
        load.requests += 1
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            load.requests -= 1
            if not task.done():
                if not load.requests:
                    task.cancel()
                    self._loads.pop(offer.name, None)  # a task that never began would not do it
            elif not task.cancelled() and not task.exception():
                await self._release(task.result())
            raise

    async def _load_in_turn(self, offer: Offer, load: _Load) -> Loaded:
        try:
            async with self._turn:
                entry = await self._load(offer)
                entry.active += load.requests  # at once: the next in turn may look for an idle one
                return entry
        finally:
            if self._loads.get(offer.name) is load:
                del self._loads[offer.name]

    async def _load(self, offer: Offer) -> Loaded:
        if entry := self.loaded.get(offer.name):
            if entry.engine.state != "stopped":  # it was loaded while this request waited
                return entry
            await self._unload(entry, "its engine ended")
        await self._make_room(offer)
        free = self._free()
        of = f", and {size(free)} are free" if free is not None else ""
        self._notify(f"loading {offer.name}: it takes about {size(offer.needs)}{of}")
        settings = replace(self._settings, model_name=offer.name, model_aliases=offer.aliases)
        engine = EngineProcess(offer.loader, settings.parallel)
        app = create_app(engine, settings, self._metrics, behind=True)
        began = time.monotonic()
        try:
            await engine.start()
            await engine.loaded()
        except LoadError as error:
            self._metrics.unwatch(app.state.service.label)
            now, (least, most) = time.monotonic(), _REMEMBERED
            until = now + min(most, max(least, now - began))
            failure = self._failures[offer.name] = _Failure(offer, f"{offer.name} cannot be loaded: {error}", until)
            raise failure.error() from error
        except BaseException:
            self._metrics.unwatch(app.state.service.label)
            await engine.stop()
            raise
        self.loaded[offer.name] = entry = Loaded(offer, engine, app)
        return entry

    async def _make_room(self, offer: Offer) -> None:
        """Unload others until there is room: those that nobody uses, and after a while the one loaded first.

        Raises:
            ApiError: there is no room even when none is loaded.

        """
        patient_until, leaving = time.monotonic() + _PATIENCE, None
        try:
            while problem := self._lacks(offer):
                idle = [entry for entry in self.loaded.values() if not entry.active]
                if idle:
                    await self._unload(min(idle, key=lambda entry: entry.used), problem)
                    continue
                if not self.loaded:
                    raise ApiError(503, f"{offer.name} cannot be loaded: {problem}", code="memory_short")
                patience: float | None = patient_until - time.monotonic()
                if patience <= 0:
                    patience = None
                    if leaving not in self.loaded.values():
                        # All are in use all the time, so that they take turns by when they were loaded.
                        leaving = next(iter(self.loaded.values()))
                        leaving.leaving = True
                        self._notify(f"{leaving.offer.name} takes no more requests: {problem}")
                self._ended.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), patience)
        finally:
            if leaving:
                leaving.leaving = False

    def _lacks(self, offer: Offer) -> str:
        """Return why a model cannot be loaded beside those that are; empty where it can."""
        count, most, free = len(self.loaded), self._settings.most_loaded, self._free()
        taken = sum(entry.offer.needs for entry in self.loaded.values())
        if count >= most:
            return f"{offer.name} is wanted, and {most} can be loaded at a time"
        bound = self._settings.model_bytes
        if bound is not None and taken + offer.needs > bound:
            return f"{offer.name} takes about {size(offer.needs)}, {size(taken)} of {size(bound)} are taken"
        if free is not None and offer.needs > free:
            return f"{offer.name} takes about {size(offer.needs)}, and {size(free)} are free"
        return ""

    async def _unload(self, entry: Loaded, why: str) -> None:
        if self.loaded.get(entry.offer.name) is not entry:
            return
        del self.loaded[entry.offer.name]
        self._notify(f"unloading {entry.offer.name}: {why}")
        self._metrics.unwatch(entry.app.state.service.label)
        await entry.engine.stop()

    async def _sweep(self) -> None:
        keep = self._settings.keep_alive
        while True:
            await asyncio.sleep(min(_LONGEST_SWEEP, max(0.05, keep / 4)))
            for entry in list(self.loaded.values()):
                if not entry.active and time.monotonic() - entry.used > keep:
                    with suppress(OSError):
                        await self._unload(entry, f"nobody asked for it in {keep:g} s")
