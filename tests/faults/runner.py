"""Runs verbs of the command line in processes that are forked from one which has everything imported.

A verb then begins in milliseconds instead of some ten seconds, so that an hour has room for thousands of faults. Graphs
are traced once, before: tracing reads and writes no file. Everything else is what `phi3-onnx` does.
"""

import atexit
import json
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from .shim import Fault, arm, counted

_GONE_SECONDS = 10.0
"""For processes that a killed one leaves: they look for it every 0.2 s, and have to be waited for."""
_ENDLESS_SECONDS = 180.0
_SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Ran:
    """What became of a process."""

    arguments: tuple[str, ...]
    code: int
    """The exit code; minus the signal where one ended it."""
    output: str
    seconds: float
    counts: dict[Fault, int] = field(default_factory=dict)

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    def __str__(self) -> str:
        return f"{' '.join(self.arguments)} -> {self.code}\n{self.output}"


@dataclass(frozen=True)
class Trouble:
    """What happens to a process; nothing by default."""

    after: float | None = None
    """Seconds until it is killed."""
    fault: Fault = Fault.COUNT
    at: int = 0
    memory: int | None = None
    """Bytes of address space that it gets beyond what it begins with."""

    def __str__(self) -> str:
        if self.after is not None:
            return f"killed after {self.after:.3f} s"
        if self.memory is not None:
            return f"{self.memory / 1e6:.0f} MB of memory"
        return f"{self.fault.name.lower()} at {self.at}"


NONE = Trouble()


class LeftoverError(AssertionError):
    """A run left something that it must not leave."""


def apart(call: Callable[[], None]) -> None:
    """Call something in a forked process, so that the threads that it starts are not this one's."""
    number = os.fork()
    if number == 0:
        try:
            call()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(number, 0)[1]:
        raise RuntimeError("a process that prepares the trials failed")


def run(
    arguments: Sequence[str | Path], root: Path, trouble: Trouble = NONE, environment: Mapping[str, str] | None = None
) -> Ran:
    """Run a verb in a folder, with a fault below it.

    Raises:
        LeftoverError: a process or a semaphore outlived it, or it did not end.

    """
    words = tuple(map(str, arguments))
    output, counts = root.parent / "output", root.parent / "counts"
    counts.unlink(missing_ok=True)
    began = time.monotonic()
    number = os.fork()
    if number == 0:
        _become(words, root, trouble, output, counts, environment or {})
    code = _wait(number, trouble.after)
    seconds = time.monotonic() - began
    _check_gone(number, words)
    if left := _semaphores(number):
        raise LeftoverError(f"{' '.join(words)} left {', '.join(sorted(left))} in {_SHARED}")
    text = output.read_text(encoding="utf-8", errors="replace")
    if code is None:
        raise LeftoverError(f"{' '.join(words)} did not end within {_ENDLESS_SECONDS:.0f} s: {text}")
    found = {Fault(int(key)): value for key, value in json.loads(counts.read_text()).items()} if counts.exists() else {}
    return Ran(words, code, text, seconds, found)


def _become(
    words: Sequence[str], root: Path, trouble: Trouble, output: Path, counts: Path, environment: Mapping[str, str]
) -> None:
    """Turn this forked process into the command line's, and end with its exit code."""
    code: Any = 70
    try:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            for number, mode in enumerate(("r", "w", "w"))
        )
        os.chdir(root)
        os.environ.update(environment)
        random.seed()
        sys.argv = ["phi3-onnx", *words]
        from phi3_onnx.cli import main

        if trouble.memory is not None:
            now = psutil.Process().memory_info().vms
            resource.setrlimit(resource.RLIMIT_AS, (now + trouble.memory, now + trouble.memory))
        arm(root, trouble.fault, trouble.at)
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        found = counted()
        arm(root, Fault.COUNT, 0)
        beside = counts.with_suffix(".partial")  # a kill may come here, too
        beside.write_text(json.dumps({int(key): value for key, value in found.items()}))
        beside.replace(counts)
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 70)


def _wait(number: int, kill_after: float | None) -> int | None:
    """Return the exit code of a child, which is killed after so many seconds; None where it did not end."""
    until = time.monotonic() + (kill_after if kill_after is not None else _ENDLESS_SECONDS)
    while True:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            os.kill(number, signal.SIGKILL)
            _, status = os.waitpid(number, 0)
            return os.waitstatus_to_exitcode(status) if kill_after is not None else None
        time.sleep(0.001)


def _check_gone(session: int, words: Sequence[str]) -> None:
    """Wait for the processes of a session to end.

    Raises:
        LeftoverError: they do not; they are killed.

    """
    until = time.monotonic() + _GONE_SECONDS
    while left := _session(session):
        if time.monotonic() >= until:
            names = [f"{process.pid} {' '.join(process.cmdline())[:80]}" for process in left]
            for process in left:
                process.kill()
            raise LeftoverError(f"{' '.join(words)} left processes: {'; '.join(names)}")
        time.sleep(0.02)


def _session(session: int) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for number in psutil.pids():
        try:
            if os.getsid(number) == session and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
                found.append(psutil.Process(number))
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return found


def _semaphores(number: int) -> set[str]:
    """Return those that loky made in a process: their names have its number; others' come and go meanwhile."""
    names = _SHARED.iterdir() if _SHARED.is_dir() else ()
    return {path.name for path in names if f"loky-{number}-" in path.name}
