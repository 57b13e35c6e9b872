"""What the machine itself gives while a package is measured: plain reading of memory, energy, this process's memory."""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ..runtime.providers.hardware import available_memory

_POWERCAP = Path("/sys/class/powercap")
_READ_BYTES = 512 << 20
_LEAST_READ_BYTES = 64 << 20
# Parts that threads take in turn: far beyond what a core's own caches hold, and short enough to share the work evenly.
_PART = 1 << 20


def read_bandwidth(threads: int) -> float:
    """Return the bytes a second that threads read of memory, with nothing to compute but one operation a word.

    The better of two reductions, whose speed is that of the memory on one processor or another.

    Args:
        threads: as many as the model has.

    """
    size = min(_READ_BYTES, max(available_memory() // 8, _LEAST_READ_BYTES))
    words = np.ones(size // 8, np.uint64)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for view, read in ((words, np.bitwise_or.reduce), (words.view(np.float32), _square_sum)):
            parts = [view[start : start + _PART] for start in range(0, len(view), _PART)]
            started = time.perf_counter()
            list(pool.map(read, parts))
            best = max(best, size / (time.perf_counter() - started))
    return best


def _square_sum(values: np.ndarray) -> float:
    return float(np.dot(values, values))


class EnergyMeter:
    """Joules that the processors which run a package have used, where the machine tells."""

    def __init__(self, provider: str, device: int = 0, powercap: Path = _POWERCAP) -> None:
        """Find what can be read.

        Args:
            provider: by this project's name; the GPU counts where it is CUDA.
            device: number of the GPU.
            powercap: Linux's folder of counters (https://docs.kernel.org/power/powercap/powercap.html).

        """
        packages = [counter for folder in sorted(powercap.glob("*-rapl:*")) if (counter := _rapl(folder))]
        gpu = _nvml(device) if provider == "cuda" else None
        self._counters: Sequence[_Counter] = [*packages, *([gpu] if gpu else [])]
        self.source = ", ".join(counter.name for counter in self._counters)
        """What is counted, such as `RAPL package-0`; empty where nothing can be read."""

    def joules(self, work: Callable[[], Any]) -> float | None:
        """Run some work, and return the energy that went by; None where it cannot be read."""
        before = [counter.read() for counter in self._counters]
        work()
        if not self._counters:
            return None
        pairs = zip(self._counters, before, strict=True)
        return sum((counter.read() - start) % counter.modulus for counter, start in pairs)


@dataclass(frozen=True)
class _Counter:
    """A counter of joules, which begins anew at its end."""

    name: str
    read: Callable[[], float]
    modulus: float = float("inf")


def _rapl(folder: Path) -> _Counter | None:
    """Return the counter of a processor; None for a part of one, which its processor counts, and for one that is shut.

    Where a processor has more than one interface (`intel-rapl` and `intel-rapl-mmio`), they count the same energy.
    """
    if folder.name.count(":") != 1 or "mmio" in folder.name:
        return None

    def read() -> float:
        return int((folder / "energy_uj").read_text()) / 1e6

    with suppress(OSError, ValueError):  # only root may read it on most machines
        read()
        name = (folder / "name").read_text().strip()
        if not name.startswith("psys"):  # the whole platform has its processors in it
            return _Counter(f"RAPL {name}", read, int((folder / "max_energy_range_uj").read_text()) / 1e6)
    return None


def _nvml(device: int) -> _Counter | None:
    with suppress(ImportError):
        nvml: Any = import_module("pynvml")
        with suppress(nvml.NVMLError):
            nvml.nvmlInit()
            handle = nvml.nvmlDeviceGetHandleByIndex(device)
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # GPUs before Volta do not count
            name = f"NVML {nvml.nvmlDeviceGetName(handle)}"
            return _Counter(name, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)
    return None


def peak_memory() -> int:
    """Return the bytes of this process's resident memory at its highest, the interpreter included."""
    peak = getattr(psutil.Process().memory_info(), "peak_wset", None)
    if peak is not None:  # Windows
        return int(peak)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
