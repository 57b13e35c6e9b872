"""What a client's guidance may cost: it is compiled on trial, in a process that can be killed, before the engine does.

The bounds of `decoding.bounds` come first. This finds what they let through, where `llguidance`, which is what
ONNX Runtime GenAI compiles guidance with, is installed as a package too.
"""

import asyncio
import contextlib
import json
import sys
from collections import OrderedDict
from pathlib import Path

from ...configs import UsageError
from ..decoding.engine import Guidance
from ..decoding.guide import can_mask
from .errors import queue_full

_SCRIPT = Path(__file__).with_name("guidance_trial.py")
_AT_ONCE = 2
_WAITING = 16
_KEPT = 256


class GuidanceTrials:
    """Trials of one server, and what came of the latest ones. For use in one event loop."""

    def __init__(self, seconds: float = 10.0) -> None:
        """Begin without any.

        Args:
            seconds: the longest that one may take.

        """
        self._seconds = seconds
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._under_way = 0
        self._known: OrderedDict[Guidance, str | None] = OrderedDict()

    async def check(self, guidance: Guidance) -> None:
        """Compile guidance on trial, where that can be done and was not done before.

        Raises:
            UsageError: it cannot be compiled, or not within the limits of time and memory.
            ApiError: too many wait for their trial.

        """
        if not can_mask():
            return
        if guidance not in self._known:
            self._known[guidance] = await self._in_turn(guidance)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(guidance)
        if (problem := self._known[guidance]) is not None:
            raise UsageError(f"the {guidance.kind} is not understood: {problem}")

    async def _in_turn(self, guidance: Guidance) -> str | None:
        if self._under_way >= _AT_ONCE + _WAITING:
            raise queue_full(
                f"{self._under_way} schemas, expressions and grammars are tried or wait for it, which is the limit"
            )
        self._under_way += 1
        try:
            async with self._turn:
                if guidance in self._known:  # another request had the same
                    return self._known[guidance]
                return await self._try(guidance)
        finally:
            self._under_way -= 1

    async def _try(self, guidance: Guidance) -> str | None:
        """Return what is wrong with guidance; None where nothing is, or no trial could be held.

        Raises:
            UsageError: the time was over, which is not remembered: it may be the machine that was busy.

        """
        pipe = asyncio.subprocess.PIPE
        try:
            trial = await asyncio.create_subprocess_exec(
                sys.executable, str(_SCRIPT), stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
            )
        except OSError:  # no more processes: the engine says what it thinks of it
            return None
        job = json.dumps({"kind": guidance.kind, "text": guidance.text}).encode()
        try:
            said, _ = await asyncio.wait_for(trial.communicate(job), self._seconds)
        except TimeoutError:
            raise UsageError(
                f"the {guidance.kind} is not understood: compiling it takes more than {self._seconds:g} s, "
                "which is the limit; make it simpler, or try again where this machine is busy"
            ) from None
        finally:
            if trial.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    trial.kill()
                await trial.wait()
        if trial.returncode == 0:
            return None
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[0][:300] if lines else "compiling it takes more memory or time than the limit; make it simpler"
