"""Check everything that running a package needs, and name the fix for each thing that is wrong."""

import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from ...configs import Phi3OnnxError, list_packages
from ...configs.extras import cuda_library, cuda_of, extra, least_driver
from ...configs.releases import RANGES, release, version_problem
from ...configs.sizes import size
from ...configs.store import cache_folder, home
from . import plugins
from .choice import remedy
from .devices import Device, list_devices
from .hardware import available_memory, default_threads, physical_cores
from .imports import TELEMETRY_VARIABLE, import_genai, import_onnxruntime
from .names import KNOWN, ORT_NAMES
from .trial import ProviderTrial, try_provider
from .wheels import Wheel, change_to, describe_clash, install_any, installed_wheels

# One package of an extra that nothing else brings.
_TOKENS = {"export": "torch", "server": "uvicorn"}
_PACKAGES = (
    "phi3-onnx",
    "numpy",
    "tokenizers",
    "jinja2",
    "torch",
    "transformers",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "safetensors",
    "gguf",
    "huggingface-hub",
    "starlette",
    "uvicorn",
)
_VARIABLES = ("PHI3_ONNX_", "ORT_", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
_SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_LITTLE_DISK = 10 * 10**9

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """Something that is wrong."""

    severity: Severity
    """`error`: no package can run; `warning`: some can, or not as fast as they could."""
    what: str
    remedy: str


@dataclass(frozen=True)
class Folder:
    """A folder of this project."""

    path: str
    bytes: int
    free_bytes: int
    """Of the disk that it is on, or would be."""


@dataclass(frozen=True)
class Report:
    """What was found."""

    python: str
    platform: str
    environment: str
    """The folder of the Python environment."""
    packages: dict[str, str | None]
    """Version of each package; None for one that is not installed."""
    wheels: tuple[Wheel, ...]
    """The installed wheels of ONNX Runtime and its GenAI library."""
    providers: tuple[ProviderTrial, ...]
    devices: tuple[Device, ...]
    physical_cores: int
    threads: int
    """What an operator uses on the CPU."""
    memory_available: int
    """Bytes, within a container's limit."""
    store: Folder
    stored_packages: tuple[str, ...]
    cache: Folder
    telemetry: bool
    """Whether ONNX Runtime GenAI may send telemetry."""
    variables: dict[str, str]
    """Environment variables that change something."""
    problems: tuple[Problem, ...]

    @property
    def healthy(self) -> bool:
        """Whether packages can run here."""
        return not any(problem.severity == "error" for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        return {"healthy": self.healthy, **asdict(self)}


def examine() -> Report:
    """Examine this environment and machine; tries each provider, which takes a second or so for each."""
    variables = _variables()  # first: the libraries set some when they are loaded
    wheels, devices = installed_wheels(), list_devices()
    trials = [try_provider(provider) for provider in _candidates()]
    store, cache = _folder(home() / "packages"), _folder(cache_folder())
    problems = [*wheel_problems(wheels), *version_problems(RANGES), *cuda_problems(wheels, devices)]
    problems += [*_import_problems(), *library_problems(), *provider_problems(trials, devices)]
    if store.free_bytes < _LITTLE_DISK:
        problems.append(
            Problem(
                "warning",
                f"the disk of {store.path} has {size(store.free_bytes)} left",
                "free some, or set PHI3_ONNX_HOME",
            )
        )
    return Report(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=platform.platform(),
        environment=sys.prefix,
        packages={name: _version(name) for name in _PACKAGES},
        wheels=tuple(wheels),
        providers=tuple(trials),
        devices=tuple(devices),
        physical_cores=physical_cores(),
        threads=default_threads(),
        memory_available=available_memory(),
        store=store,
        stored_packages=tuple(package.name for package in list_packages()),
        cache=cache,
        telemetry=variables.get(TELEMETRY_VARIABLE, "0") not in ("", "0")
        and variables.get("ORT_DISABLE_TELEMETRY") != "1",
        variables=variables,
        problems=tuple(problems),
    )


def wheel_problems(wheels: Sequence[Wheel]) -> list[Problem]:
    """Return what is wrong with the wheels of ONNX Runtime: none, two that overwrite each other, halves of a pair."""
    problems = []
    modules = {wheel.module for wheel in wheels}
    if clash := describe_clash(wheels):
        problems.append(Problem("error", f"{clash} (onnxruntime#26996)", install_any(wheels)))
    for module, what in (("onnxruntime", "ONNX Runtime"), ("onnxruntime_genai", "its GenAI library")):
        if module not in modules:
            problems.append(Problem("error", f"{what} is not installed", install_any([])))
    return problems


def version_problems(names: Iterable[str]) -> list[Problem]:
    """Return the packages, of these, that are installed in a version that is known not to work."""
    found = [problem for name in names if (problem := version_problem(name))]
    return [Problem("warning", what, fix) for what, fix in found]


def cuda_problems(
    wheels: Sequence[Wheel], devices: Sequence[Device], has: Callable[[str], bool] | None = None
) -> list[Problem]:
    """Return what keeps the CUDA wheels from running: two versions of CUDA, an older driver, a library that is missing.

    Args:
        wheels: those that are installed.
        devices: those that are there.
        has: whether a library of CUDA can be loaded; by default it is tried.

    """
    linked = {wheel: cuda for wheel in wheels if (cuda := cuda_of(wheel.name, wheel.version))}
    if not linked:
        return []
    drivers = [release(device.driver)[0] for device in devices if device.kind == "nvidia" and device.driver]
    old = bool(drivers) and min(drivers) < least_driver(13)
    fitting = change_to(extra("cuda12" if old else "cuda"), wheels)
    if len(set(linked.values())) > 1:
        ordered = sorted(linked.items(), key=str)
        what = " and ".join(f"{wheel.name} {wheel.version} needs {cuda_library(cuda)}" for wheel, cuda in ordered)
        return [Problem("warning", f"{what}: no CUDA has both", fitting)]
    (cuda,) = set(linked.values())
    if drivers and min(drivers) < least_driver(cuda):
        what = f"the NVIDIA driver {min(drivers)} is too old for CUDA {cuda}, which needs {least_driver(cuda)} or later"
        remedy = "update the driver" if min(drivers) < least_driver(12) else f"update the driver, or {fitting}"
        return [Problem("warning", what, remedy)]
    if drivers and not (has or _loads)(cuda_library(cuda)):
        names = " and ".join(f"{wheel.name} {wheel.version}" for wheel in linked)
        runtime = next(wheel for wheel in wheels if wheel.name == "onnxruntime-gpu")
        remedy = f'run: pip install "{runtime.name}[cuda,cudnn]=={runtime.version}"'
        return [Problem("warning", f"{cuda_library(cuda)} is missing, which {names} need", remedy)]
    return []


def _loads(library: str) -> bool:
    """Return whether a library of CUDA is on the system's path, or in the environment as NVIDIA's wheels put it."""
    try:
        ctypes.CDLL(library)
    except OSError:
        folders = [Path(path) / "nvidia" for path in sys.path]
        return any(next(folder.rglob(library), None) for folder in folders if folder.is_dir())
    return True


def library_problems() -> list[Problem]:
    """Return the plug-in libraries that were named and have nothing to run on here."""
    found = []
    try:
        for library in plugins.libraries():
            if plugins.is_registered(library):
                plugins.provider_of(library)
    except Phi3OnnxError as error:
        what, _, fix = str(error).partition("; ")
        found.append(Problem("warning", what, fix))
    return found


def provider_problems(trials: Sequence[ProviderTrial], devices: Sequence[Device]) -> list[Problem]:
    """Return what is wrong with the providers: the CPU's does not run, or that of a GPU that is there."""
    problems = []
    for trial in trials:
        if trial.runs:
            continue
        if trial.provider == "cpu":
            problems.append(Problem("error", f"the CPU provider does not run: {trial.reason}", remedy("cpu")))
            continue
        # DirectML is not missed where CUDA runs on the same GPU.
        able = [device.name for device in devices if trial.provider in device.providers]
        if able and not any(other.runs and other.provider != "cpu" for other in trials):
            what = f"{able[0]} is there, and provider {trial.provider} does not run: {trial.reason}"
            problems.append(Problem("warning", what, remedy(trial.provider)))
    return problems


def _import_problems() -> list[Problem]:
    problems = []
    for load in (import_onnxruntime, import_genai):
        try:
            load()
        except Phi3OnnxError as error:
            if "not installed" not in error.message:  # `wheel_problems` says that
                problems.append(Problem("error", error.message, error.remedy))
    return problems


def _candidates() -> list[str]:
    try:
        available = import_onnxruntime().get_available_providers()
    except Phi3OnnxError:
        return list(KNOWN)
    # Every wheel has the provider for Azure, which asks a service and computes nothing here.
    left_out = {*ORT_NAMES.values(), "AzureExecutionProvider"}
    return [*KNOWN, *(name.removesuffix("ExecutionProvider") for name in available if name not in left_out)]


def _folder(path: Path) -> Folder:
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0
    there = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    return Folder(str(path), size, shutil.disk_usage(there).free)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _variables() -> dict[str, str]:
    return {
        name: "(set)" if any(secret in name for secret in _SECRETS) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(_VARIABLES)
    }


def missing_extras() -> list[str]:
    """Return the extras whose packages are not installed: what else could be done here."""
    return [extra for extra, package in _TOKENS.items() if _version(package) is None]
