"""An engine that runs elsewhere, in replicas that may be lost: a job whose replica is lost is repeated on another."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from ...configs import EngineError
from .answers import Answers, State
from .messages import Accepted, Client, Finished, FromEngine, Job, Piece, Ready, Refused, Tokenized, TokenText, ends_job

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 5
_WAIT_SECONDS = 0.5
_SEEDS = 2**31

Run = Callable[[Job], AsyncIterator[Sequence[FromEngine]]]
"""Lets a replica work on a job: its events, some at a time."""


class LostError(EngineError):
    """The replica that worked on a job is gone; another may do it."""


class DivergedError(EngineError):
    """A repeated answer does not begin as what the client has of it."""


@dataclass
class _Sent:
    """What the client has of one answer, and how far its repetition has come."""

    text: str = ""
    logprobs: int = 0
    again: str = ""
    again_logprobs: int = 0
    complete: bool = False

    def repeat(self) -> None:
        self.again, self.again_logprobs = "", 0

    def new(self, text: str, logprobs: tuple[TokenText, ...]) -> tuple[str, tuple[TokenText, ...]]:
        """Return what the client does not have yet of a piece."""
        self.again += text
        known = min(len(self.text), len(self.again))
        if self.text[:known] != self.again[:known]:
            raise DivergedError("the replica that answered was lost, and another one's answer begins otherwise")
        more = self.again[len(self.text) :]
        skipped = max(0, self.logprobs - self.again_logprobs)
        self.again_logprobs += len(logprobs)
        self.text += more
        self.logprobs = max(self.logprobs, self.again_logprobs)
        return more, logprobs[skipped:]


class Progress:
    """How far a job has come at its client, so that a repetition continues there."""

    def __init__(self, job: Job) -> None:
        """Begin; nothing is sent yet."""
        self._stream = job.stream
        self._accepted = False
        self._answers = [_Sent() for _ in range(len(job.prompts) * job.choices)]

    def repeat(self) -> None:
        """Begin again, on another replica."""
        for answer in self._answers:
            answer.repeat()

    def new(self, event: FromEngine) -> FromEngine | None:
        """Return what of an event the client does not have yet; None where it has all.

        Raises:
            DivergedError: the answer begins otherwise than what the client has of it.

        """
        if isinstance(event, Accepted):
            first, self._accepted = not self._accepted, True
            return event if first else None
        if isinstance(event, Piece):
            answer = self._answers[event.choice]
            if answer.complete:
                return None
            text, logprobs = answer.new(event.text, event.logprobs)
            return replace(event, text=text, logprobs=logprobs) if text or logprobs else None
        if isinstance(event, Finished):
            answer = self._answers[event.choice]
            if answer.complete:
                return None
            if self._stream:
                text, logprobs = answer.new(event.text, event.logprobs)
                if len(answer.again) < len(answer.text):
                    raise DivergedError("the replica that answered was lost, and another one's answer is shorter")
                event = replace(event, text=text, logprobs=logprobs)
            answer.complete = True
            return replace(event, last=all(answer.complete for answer in self._answers))
        return event


class RemoteEngine:
    """An engine for the web side whose jobs run in replicas. An accepted job outlives the replica that has it."""

    def __init__(
        self, ready: Callable[[], Awaitable[Ready]], run: Run, lost: Callable[[Exception], bool] = lambda error: False
    ) -> None:
        """Prepare it.

        Args:
            ready: waits until a replica has loaded the model, and returns what it is.
            run: lets a replica work on a job; raises or ends early where that replica is lost.
            lost: whether an error of `run` means that the replica is lost, besides `LostError`.

        """
        self._load = ready
        self._run = run
        self._lost = lost
        self._jobs: dict[int, tuple[asyncio.Task[None], Client]] = {}
        self._numbers = 0
        self._loading: asyncio.Task[None] | None = None
        self.state: State = "loading"
        self.info: Ready | None = None
        self.cache = None
        self.restarts = 0

    @property
    def jobs(self) -> int:
        """Jobs handed over and not yet through."""
        return len(self._jobs)

    @property
    def clients(self) -> Iterable[Client]:
        """Whose they are: one entry for each job."""
        return (client for _, client in self._jobs.values())

    async def start(self) -> None:
        """Ask the replicas for the model; does not wait until one has it."""
        self._loading = asyncio.create_task(self._loaded())

    async def stop(self) -> None:
        """End every job that is not through."""
        self.state = "stopped"
        tasks = [*(task for task, _ in self._jobs.values()), *([self._loading] if self._loading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def submit(self, job: Job) -> Answers:
        """Hand a job over; its `id` is set here.

        Raises:
            EngineError: the engine is not ready.

        """
        if self.state != "ready":
            raise EngineError(f"the engine is {self.state}")
        self._numbers += 1
        answers = Answers(replace(job, id=self._numbers, options=_seeded(job)))
        self._jobs[self._numbers] = asyncio.create_task(self._work(answers)), job.client
        return answers

    def cancel(self, answers: Answers) -> None:
        """Give a job up; does nothing where it is through."""
        if found := self._jobs.pop(answers.job.id, None):
            found[0].cancel()

    async def _loaded(self) -> None:
        while self.info is None:
            try:
                self.info = await self._load()
                self.state = "ready"
            except Exception as error:
                _LOG.warning("no replica has loaded the model yet: %s", error)
                await asyncio.sleep(_WAIT_SECONDS)

    async def _work(self, answers: Answers) -> None:
        job = answers.job
        try:
            answers.put(await self._through(answers))
        except asyncio.CancelledError:
            if self.state == "stopped":
                answers.put(Refused(job.id, "stopped", "the server is shutting down"))
            raise
        except EngineError as error:
            answers.put(Refused(job.id, "stopped", str(error)))
        except Exception:
            _LOG.exception("job %d failed", job.id)
            answers.put(Refused(job.id, "engine", "a replica met an error that it does not know; its log has more"))
        finally:
            self._jobs.pop(job.id, None)

    async def _through(self, answers: Answers) -> Refused | Tokenized | Finished:
        """Let replicas work on a job until one is through with it, and return its last event."""
        progress = Progress(answers.job)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._attempt(answers, progress)
            except Exception as error:
                if not (isinstance(error, LostError) or self._lost(error)):
                    raise
                self.restarts += 1
                reason = str(error).partition("\n")[0]
                _LOG.warning("job %d lost its replica, attempt %d: %s", answers.job.id, attempt, reason)
            progress.repeat()
            await asyncio.sleep(_WAIT_SECONDS * (attempt - 1))
        raise EngineError(f"{_ATTEMPTS} replicas were lost while they worked on this request")

    async def _attempt(self, answers: Answers, progress: Progress) -> Refused | Tokenized | Finished:
        events: Any = self._run(answers.job)
        async with aclosing(events):
            async for some in events:
                for event in some:
                    if isinstance(event, Refused) and event.kind == "stopped":
                        raise LostError(event.message)
                    new = progress.new(event)
                    if ends_job(new):
                        return new
                    if isinstance(new, Accepted | Piece | Finished):
                        answers.put(new)
        raise LostError("its events ended early")


def _seeded(job: Job) -> dict[str, Any]:
    """Return a job's options with a seed, so that a repetition draws the same tokens."""
    options = dict(job.options)
    if options.get("seed") is None:
        options["seed"] = random.randrange(_SEEDS)
    return options
