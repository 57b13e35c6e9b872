"""The processors of this machine: its CPU and its GPUs, with their drivers, as the operating system tells."""

import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from .hardware import available_memory

_LOG = logging.getLogger(__name__)
_SECONDS = 20
_DRM = Path("/sys/class/drm")
# https://pci-ids.ucw.cz, the makers of GPUs.
_MAKERS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}


@dataclass(frozen=True)
class Device:
    """A processor that can run a model."""

    kind: str
    """`cpu`, `nvidia`, or `gpu` for another."""
    number: int
    """What `--device` takes."""
    name: str
    driver: str | None = None
    memory: int | None = None
    """Bytes in all; None where it is not known."""
    free: int | None = None
    """Bytes free; None where it is not known."""
    compute_capability: str | None = None
    """NVIDIA's."""

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that run on it."""
        if self.kind == "cpu":
            return ("cpu",)
        dml = ("dml",) if sys.platform == "win32" else ()
        return ("cuda", *dml) if self.kind == "nvidia" else dml


def list_devices() -> list[Device]:
    """Return the CPU, and then every GPU that is found; those without a driver that works may be missing."""
    nvidia = _nvidia()
    others = _windows() if sys.platform == "win32" else _linux() if sys.platform == "linux" else []
    if nvidia:
        others = [device for device in others if "NVIDIA" not in device.name.upper()]
    return [_cpu(), *nvidia, *others]


def free_memory(provider: str, number: int = 0) -> int | None:
    """Return the bytes that can be taken where a provider runs; None where that is not known.

    Args:
        provider: by this project's name.
        number: the GPU's, as `--device` takes it.

    """
    if provider == "cpu":
        return available_memory()
    if provider != "cuda":
        return None
    device = cuda_device(_nvidia(), number, os.environ)
    return device.free if device else None


def cuda_device(devices: Sequence[Device], number: int, environment: Mapping[str, str]) -> Device | None:
    """Return the GPU that CUDA calls `number`, of those that NVML lists; None where that cannot be told.

    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables: CUDA counts those that it may
    see, and by its own order where they are not all alike, unless it is told to take that of the bus.
    """
    if len({device.name for device in devices}) > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    numbers = [str(device.number) for device in devices] if visible is None else visible.split(",")
    wanted = numbers[number].strip() if number < len(numbers) else ""
    return next((device for device in devices if str(device.number) == wanted), None)


def device_identity(provider: str, number: int = 0) -> str:
    """Return what tells the device that a provider runs on from others, with its driver, as far as that is known.

    Args:
        provider: by this project's name.
        number: the GPU's, as `--device` takes it.

    """
    if provider == "cpu":
        return f"{_cpu_name()}{_cpu_kind()}"
    if sys.platform == "win32" and provider != "cuda":
        return f"{number} of {', '.join(_registered_adapters())}"
    gpus = _nvidia() if provider == "cuda" else [device for device in list_devices() if device.kind != "cpu"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    among = f" (CUDA_VISIBLE_DEVICES={visible})" if provider == "cuda" and visible is not None else ""
    return f"{number} of {', '.join(f'{device.name} driver {device.driver}' for device in gpus)}{among}"


# Display adapters: https://learn.microsoft.com/windows-hardware/drivers/install/system-defined-device-setup-classes
_ADAPTERS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"


def _registered_adapters() -> list[str]:
    """Return Windows' display adapters with their drivers, from the registry: asking PowerShell takes a second."""
    registry: Any = import_module("winreg")
    found: list[str] = []
    try:
        with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, _ADAPTERS) as adapters:
            names = [registry.EnumKey(adapters, index) for index in range(registry.QueryInfoKey(adapters)[0])]
            for name in (name for name in names if name.isdecimal()):
                with registry.OpenKey(adapters, name) as adapter:
                    values = (registry.QueryValueEx(adapter, value)[0] for value in ("DriverDesc", "DriverVersion"))
                    found.append(" driver ".join(map(str, values)))
    except OSError as error:  # one that is not for us to read, or has no driver
        _LOG.debug("display adapters: %s", error)
    return found


def _cpu() -> Device:
    memory = psutil.virtual_memory()
    return Device("cpu", 0, _cpu_name(), memory=memory.total, free=memory.available)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _cpu_kind() -> str:
    """Return what tells processors of one name apart, as virtual machines have them: a digest of what they can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # elsewhere the name has family and model
        return ""
    # x86 and ARM; not what differs between cores, or from one start to the next.
    kinds = ("cpu family", "model\t", "flags", "CPU implementer", "CPU part", "Features")
    told = "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
    return f", {sha256(told.encode()).hexdigest()[:8]}" if told else ""


def _nvidia() -> list[Device]:
    """Return NVIDIA's GPUs by NVML, their driver's own library; none without it or its module."""
    try:
        nvml = import_module("pynvml")
    except ImportError:  # it comes with the CUDA extra
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        driver = nvml.nvmlSystemGetDriverVersion()
        return [_nvml_device(nvml, number, driver) for number in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:  # a GPU that fell off the bus takes the listing with it
        return []
    finally:
        nvml.nvmlShutdown()


def _nvml_device(nvml: Any, number: int, driver: str) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(number)
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except nvml.NVMLError:  # GPUs that share the machine's memory do not say
        total = free = None
    capability = ".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(handle)))
    return Device("nvidia", number, nvml.nvmlDeviceGetName(handle), driver, total, free, capability)


def _windows() -> list[Device]:
    script = "Get-CimInstance Win32_VideoController | Select-Object Name,DriverVersion | ConvertTo-Json"
    return read_video_controllers(_run(["powershell", "-NoProfile", "-NonInteractive", "-Command", script]))


def read_video_controllers(output: str) -> list[Device]:
    """Return the GPUs in PowerShell's JSON of `Win32_VideoController`: a list, or an object where there is but one."""
    try:
        found = json.loads(output or "[]")
    except ValueError:
        return []
    entries = found if isinstance(found, list) else [found]
    return [
        Device("gpu", number, str(entry.get("Name")), entry.get("DriverVersion"))
        for number, entry in enumerate(entry for entry in entries if isinstance(entry, dict))
    ]


def _linux() -> list[Device]:
    devices = []
    for card in sorted(_DRM.glob("card[0-9]*")):
        if "-" in card.name:  # one of its outputs
            continue
        maker = _MAKERS.get(_line(card / "device/vendor"))
        if maker:
            driver = card / "device/driver"
            name = f"{maker} GPU ({_line(card / 'device/device')})"
            devices.append(Device("gpu", len(devices), name, driver.resolve().name if driver.exists() else None))
    return devices


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
