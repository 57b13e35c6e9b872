"""A stand-in for `pynvml`, the module of NVIDIA's driver library."""

from collections.abc import Sequence
from types import SimpleNamespace

Gpu = tuple[str, tuple[int, int] | None, tuple[int, int]]
"""Name, (total, free) memory in bytes or None for one that does not say, compute capability."""
RTX: Gpu = ("NVIDIA GeForce RTX 4090", (24 << 30, 23 << 30), (8, 9))
GB10: Gpu = ("NVIDIA GB10", None, (12, 1))


class Nvml:
    """As much of `pynvml` as is used."""

    class NVMLError(Exception):
        pass

    def __init__(self, gpus: Sequence[Gpu], *, driver: str | None = "570.86.15", lost: bool = False) -> None:
        self.gpus, self.driver, self.lost, self.open = gpus, driver, lost, 0

    def nvmlInit(self) -> None:  # noqa: N802 - the module names it so
        if self.driver is None:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802 - the module names it so
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str | None:  # noqa: N802 - the module names it so
        return self.driver

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - the module names it so
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 - the module names it so
        assert self.open == 1
        if self.lost:
            raise self.NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802 - the module names it so
        return self.gpus[handle][0]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802 - the module names it so
        memory = self.gpus[handle][1]
        if memory is None:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(total=memory[0], free=memory[1])

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802 - the module names it so
        return self.gpus[handle][2]
