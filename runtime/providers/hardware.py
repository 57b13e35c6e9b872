"""What of this machine a model may use: physical cores and memory, within what a container was given."""

import os
import sys
from pathlib import Path

import psutil

THREADS_VARIABLE = "PHI3_ONNX_THREADS"
# Bytes. The 135 M model's layers have 3 MB and lose a quarter without spinning; Phi-3-mini's have 60 MB or more.
_LARGE_LAYER = 16_000_000
_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """Return how many threads one operator should use: `$PHI3_ONNX_THREADS`, or the physical cores we may run on.

    More than that makes matrix multiplication slower, since two threads of one core share its vector units.
    """
    return named_threads() or physical_cores()


def named_threads() -> int | None:
    """Return `$PHI3_ONNX_THREADS`; None where it is no number of threads."""
    named = os.environ.get(THREADS_VARIABLE, "")
    return int(named) if named.isdecimal() and int(named) > 0 else None


def spins(layer_bytes: int) -> bool:
    """Whether threads on the CPU should wait for the next operator without sleeping.

    With small operators, waking a thread takes longer than the work. With those of a model of billions of weights it
    takes 2 %, and a thread that spins while another process has its core makes every operator wait for it: beside one
    busy process, 8 layers of Phi-3-mini's width then decode at 0.5 of a quiet machine's speed, and without at 0.8.

    Args:
        layer_bytes: bytes of weights in one layer.

    """
    return layer_bytes < _LARGE_LAYER


def spinning_option(layer_bytes: int) -> dict[str, str]:
    """Return ONNX Runtime's session option for `spins`, as its name and value."""
    return {"session.intra_op.allow_spinning": "1" if spins(layer_bytes) else "0"}


def physical_cores() -> int:
    """Return the physical cores of the CPUs that this process may run on, at most its quota; at least 1."""
    cores = _allowed_cores() or psutil.cpu_count(logical=False) or os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, min(cores, quota) if quota else cores)


def _allowed_cores() -> int | None:
    if sys.platform != "linux":
        return None
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        try:
            siblings.add((_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:  # not shown in this container
            return min(psutil.cpu_count(logical=False) or cpu + 1, len(os.sched_getaffinity(0)))
    return len(siblings)


def _cpu_quota() -> int | None:
    # cgroup v2: "<quota> <period>" in microseconds, or "max <period>".
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):
        return None


def available_memory() -> int:
    """Return the bytes that can be taken without swapping, at most what is left of the container's limit."""
    free = psutil.virtual_memory().available
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return free
    # The page cache counts as used, and is given back when it is needed.
    return max(0, min(free, limit - used + _reclaimable()))


def _reclaimable() -> int:
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))
