"""The web process's side of the engine: starts its process, hands jobs over, and starts it again when it dies."""

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ...configs import EngineError, Phi3OnnxError
from .answers import Answers, State
from .channel import WebEnd, socket_pair
from .messages import (
    CacheState,
    Cancel,
    Client,
    FromEngine,
    Job,
    LoadFailed,
    Ready,
    Refused,
    Shutdown,
    ends_job,
)
from .worker import run_engine

_LOG = logging.getLogger(__name__)
_LONGEST_WAIT = 30.0
_STEADY_SECONDS = 60.0
_STOP_SECONDS = 5.0
_AGAIN_SECONDS = 5.0


class LoadError(Phi3OnnxError):
    """The engine's process could not load the model when the server started."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class EngineProcess:
    """The engine's process. All methods are for the event loop that `start` ran in."""

    def __init__(self, loader: Callable[[], Any], parallel: int) -> None:
        """Prepare it; `start` starts it.

        Args:
            loader: returns the `Model`, in the engine's process; has to be picklable.
            parallel: jobs that it works on side by side.

        """
        self._loader = loader
        self._parallel = parallel
        self._jobs: dict[int, Answers] = {}
        self._numbers = 0
        self._process: Any = None
        self._end: WebEnd | None = None
        self._ready = asyncio.Event()
        self._failure: LoadError | None = None
        self._restart: asyncio.Task[None] | None = None
        self._exit: asyncio.Task[None] | None = None
        self._loaded_at = 0.0
        self._crashes = 0
        self.state: State = "loading"
        self.info: Ready | None = None
        """What the model is; None until it was loaded for the first time."""
        self.cache: CacheState | None = CacheState()
        """What is kept of texts that ended, when the last answer was through."""
        self.restarts = 0
        """How often the process was started again."""

    @property
    def pid(self) -> int | None:
        """The process's number, of the one that runs now."""
        return self._process.pid if self._process else None

    @property
    def jobs(self) -> int:
        """Jobs handed over and not yet through."""
        return len(self._jobs)

    @property
    def clients(self) -> Iterable[Client]:
        """Whose they are: one entry for each job."""
        return (answers.job.client for answers in self._jobs.values())

    async def start(self) -> None:
        """Start the process; does not wait until it is ready."""
        # A fresh interpreter on every platform: threads and a lock of this process do not come along.
        context = multiprocessing.get_context("spawn")
        ours, theirs = socket_pair()
        process = context.Process(
            target=run_engine, args=(theirs, self._loader, self._parallel), name="phi3-onnx-engine", daemon=True
        )
        process.start()
        theirs.close()  # the connection has to close when the process dies
        self._process = process
        _, self._end = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: WebEnd(self._deliver, lambda: self._on_end(process)), ours
        )

    async def loaded(self) -> Ready:
        """Wait until the model is loaded for the first time.

        Raises:
            LoadError: it cannot be.

        """
        await self._ready.wait()
        if self._failure:
            raise self._failure
        assert self.info is not None
        return self.info

    def submit(self, job: Job) -> Answers:
        """Hand a job over; its `id` is set here.

        Raises:
            EngineError: the engine is not ready.

        """
        if self.state != "ready":
            raise EngineError(f"the engine is {self.state}")
        self._numbers += 1
        answers = Answers(replace(job, id=self._numbers))
        self._jobs[self._numbers] = answers
        self._send(answers.job)
        return answers

    def cancel(self, answers: Answers) -> None:
        """Give a job up; does nothing where it is through."""
        if self._jobs.pop(answers.job.id, None):
            self._send(Cancel(answers.job.id))

    def end_jobs(self, message: str) -> None:
        """Refuse every job that is not through, with kind `stopped`."""
        for answers in list(self._jobs.values()):
            self._send(Cancel(answers.job.id))
            self._deliver(Refused(answers.job.id, "stopped", message))

    async def stop(self) -> None:
        """End the process, by force where it does not end by itself within seconds."""
        self.state = "stopped"
        if self._restart:
            self._restart.cancel()
        self.end_jobs("the server is shutting down")
        process = self._process
        if process is None:
            return
        self._send(Shutdown())
        await asyncio.to_thread(process.join, _STOP_SECONDS)
        if process.is_alive():
            process.kill()
            await asyncio.to_thread(process.join)
        if self._end:
            self._end.close()

    def _send(self, message: Job | Cancel | Shutdown) -> None:
        if self._end:
            self._end.send(message)

    def _deliver(self, message: FromEngine) -> None:
        if isinstance(message, Ready):
            self.info, self.state, self._loaded_at = message, "ready", time.monotonic()
            self._ready.set()
        elif isinstance(message, CacheState):
            self.cache = message
        elif isinstance(message, LoadFailed):
            if self.info is None:
                self._failure = LoadError(message.message, message.exit_code)
            else:
                _LOG.error("the model cannot be loaded again: %s", message.message)
        elif answers := self._jobs.get(message.id):
            if ends_job(message):
                del self._jobs[message.id]
            answers.put(message)

    def _on_end(self, process: Any) -> None:
        if self.state != "stopped":
            self._exit = asyncio.get_running_loop().create_task(self._on_exit(process))

    async def _on_exit(self, process: Any) -> None:
        await asyncio.to_thread(process.join, _STOP_SECONDS)
        if self.state == "stopped":
            return
        how = f"ended with {_ending(process.exitcode)}"
        if self.info is None:
            self._failure = self._failure or LoadError(f"the engine's process {how} while it loaded the model")
            self.state = "stopped"
            self._ready.set()
            return
        # One that ran for a while starts again at once; one that dies again and again waits longer each time.
        steady = self.state == "ready" and time.monotonic() - self._loaded_at > _STEADY_SECONDS
        self._crashes = 0 if steady else self._crashes + 1
        wait = 0.0 if self._crashes <= 1 else min(_LONGEST_WAIT, 2.0 ** (self._crashes - 2))
        _LOG.error("the engine's process %s; starting another in %.0f s", how, wait)
        self.state = "restarting"
        for answers in list(self._jobs.values()):
            self._deliver(Refused(answers.job.id, "stopped", "the engine stopped unexpectedly and is starting again"))
        self._restart = asyncio.get_running_loop().create_task(self._start_again(wait))

    async def _start_again(self, wait: float) -> None:
        await asyncio.sleep(wait)
        self.restarts += 1
        while True:
            try:
                await self.start()
                return
            except OSError as error:  # no more processes or files: that may pass
                _LOG.error("the engine's process cannot be started: %s; trying again in %.0f s", error, _AGAIN_SECONDS)
                await asyncio.sleep(_AGAIN_SECONDS)


def _ending(code: int | None) -> str:
    if code is None:
        return "no exit code"
    if code < 0:
        hint = ", as it does when memory runs out" if code == -9 else ""
        return f"signal {-code}{hint}"
    return f"exit code {code}"
