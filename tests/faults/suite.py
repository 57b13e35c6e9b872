"""Faults at random moments of every verb that writes, and what is left afterwards.

    tests/faults/run                    an hour: 100 kills and 40 other faults of each verb, and more while time is left
    tests/faults/run --minutes 10       ten minutes
    tests/faults/run --kills 5 --job export --seed 3

A trial disturbs a verb once to three times, then runs it undisturbed. After each disturbance, what has a final name
must be the earlier package or the new one, whole, and the verb must have ended by the kill or with one line. After the
undisturbed run the result must equal that of a run that nobody disturbed, to the byte, and no process, semaphore or
file may be left. The disturbances: SIGKILL at a random time, SIGKILL before or after a random change of a file (a
preloaded library counts them), a disk that is full after so many bytes, reads that fail, and a limit of memory
(`ulimit -v`). Where this process may mount, disks of a random size are real ones (tmpfs).

Exit code 1 where anything failed. The trial's number and the seed repeat it. Ctrl-C ends a run with the table of what
was done.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "doubles")]

from . import shim  # noqa: E402

if TYPE_CHECKING:
    from .trials import Bench, Tally

_ALL = ("export", "export-processes", "quantize", "pull", "push", "push-dry-run", "demo", "rm")
_OTHERS_PER_KILL = 0.4
_KILLS, _OTHERS = ("time", "before", "after"), ("full", "disk", "read", "memory")
_NAMES = {
    "time": "killed at a time",
    "before": "before a change",
    "after": "after one",
    "full": "full disk",
    "disk": "full tmpfs",
    "read": "unreadable",
    "memory": "`ulimit -v`",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="end after so long  [default: when all kills are done]")
    parser.add_argument("--kills", type=int, default=100, help="of each verb  [default: %(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", choices=_ALL, action="append", help="which verbs  [default: all]")
    options = parser.parse_args()
    if "FAULTS_FOLDER" not in os.environ:  # the library has to be there before the process begins
        folder = Path(tempfile.mkdtemp(prefix="phi3-onnx-faults-"))
        try:
            return _with_library(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    from .trials import Bench

    bench = Bench(Path(os.environ["FAULTS_FOLDER"]), options.job or _ALL)
    try:
        return _run(bench, options.kills, options.seed, options.minutes)
    finally:
        bench.close()


def _with_library(folder: Path) -> int:
    variables = {
        "FAULTS_FOLDER": str(folder),
        "LD_PRELOAD": str(shim.build(folder)),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "NO_COLOR": "1",
        "HF_HOME": str(folder / "hub-cache"),
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PHI3_ONNX_THREADS"), "1"),
    }
    command = [sys.executable, "-m", "tests.faults.suite", *sys.argv[1:]]
    with subprocess.Popen(command, env={**os.environ, **variables}) as suite:
        while True:
            try:
                return suite.wait()
            except KeyboardInterrupt:  # the suite has it, too, and says what it has done
                continue


def _run(bench: "Bench", kills: int, seed: int, minutes: float | None) -> int:
    """Go through the verbs in turn until each had its kills and other faults, or the time is over."""
    from .trials import Tally

    tallies = {name: Tally() for name in bench.jobs}
    try:
        _until_done(bench, tallies, kills, seed, minutes)
    except KeyboardInterrupt:
        print("interrupted; what ran until then:", file=sys.stderr)
    _print(tallies)
    return 1 if any(tally.failures for tally in tallies.values()) else 0


def _until_done(bench: "Bench", tallies: Mapping[str, "Tally"], kills: int, seed: int, minutes: float | None) -> None:
    until = None if minutes is None else time.monotonic() + 60 * minutes
    number = 0
    while until is None or time.monotonic() < until:
        open_jobs = [name for name, tally in tallies.items() if _kinds(tally, kills)]
        if not open_jobs:
            break
        for name in open_jobs:
            number += 1
            tally, before = tallies[name], len(tallies[name].failures)
            bench.trial(bench.jobs[name], random.Random(f"{seed}/{number}"), _kinds(tally, kills), tally)
            for failure in tally.failures[before:]:
                print(f"FAILED {name}, trial {number}: {failure}\n", flush=True)
            if until is not None and time.monotonic() >= until:
                break
        done = sum(tally.ended["killed"] for tally in tallies.values())
        print(f"{number} trials, {done} kills of {kills * len(tallies)}", file=sys.stderr, flush=True)


def _kinds(tally: "Tally", kills: int) -> tuple[str, ...]:
    """Return the kinds of disturbance that a verb has not had often enough."""
    others = sum(tally.disturbed[kind] for kind in _OTHERS)
    return (_KILLS if tally.ended["killed"] < kills else ()) + (_OTHERS if others < kills * _OTHERS_PER_KILL else ())


def _print(tallies: Mapping[str, "Tally"]) -> None:
    kinds = (*_KILLS, *_OTHERS)
    print("| verb | trials | " + " | ".join(_NAMES[kind] for kind in kinds) + " | ended | failures |")
    print("|---" * (len(kinds) + 4) + "|")
    for name, tally in tallies.items():
        counts = " | ".join(str(tally.disturbed[kind]) for kind in kinds)
        ended = ", ".join(f"{count} {how}" for how, count in tally.ended.most_common())
        print(f"| {name} | {tally.trials} | {counts} | {ended} | {len(tally.failures)} |")


if __name__ == "__main__":
    sys.exit(main())
