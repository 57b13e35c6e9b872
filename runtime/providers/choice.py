"""Execution providers: their names, which of them can run here, and what to do about those that can not."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from ...configs import ProviderError, UsageError
from ...configs.extras import GENAI, ONNXRUNTIME, WHEELS, Extra, cuda_of, extra_for, least_driver
from ...configs.releases import VersionError, check_versions
from . import plugins

if TYPE_CHECKING:
    from .placement import Placement

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

KNOWN = ("cpu", "cuda", "dml")
"""The providers that targets are made for, and this project's names of them."""
_ORT_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "dml": "DmlExecutionProvider"}
_SUFFIX = "executionprovider"
_OR_ANOTHER = "(or [cuda], or [directml])"

TELEMETRY_VARIABLE = "PHI3_ONNX_TELEMETRY"


@dataclass(frozen=True)
class Candidate:
    """One provider that was considered, and how it went."""

    provider: str
    chosen: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.provider}: {'chosen' if self.chosen else 'not chosen'}, {self.reason}"


@dataclass(frozen=True)
class ProviderChoice:
    """The provider that runs, and why it and no other."""

    provider: str
    candidates: tuple[Candidate, ...]
    placement: "Placement | None" = None
    """Where the nodes of the graph landed; None on the CPU, and where it is not known."""

    def __str__(self) -> str:
        placed = [str(self.placement)] if self.placement and self.placement.elsewhere else []
        return "; ".join([*map(str, self.candidates), *placed])


@dataclass(frozen=True)
class Wheel:
    """An installed wheel of ONNX Runtime or of its GenAI library."""

    name: str
    version: str
    module: str
    """The module it installs: `onnxruntime` or `onnxruntime_genai`."""


def canonical(name: str) -> str:
    """Return this project's name of a provider: `cpu`, `cuda`, `dml`, `auto`, or ONNX Runtime's own without its suffix.

    Raises:
        UsageError: ONNX Runtime knows no such provider.

    """
    short = name.lower().removesuffix(_SUFFIX)
    if short in (*KNOWN, "auto"):
        return short
    if short == "directml":
        return "dml"
    known = _every_ort_provider()
    if library := plugins.find(short):
        return _short(plugins.provider_of(library))
    for ort_name in known:
        if _short(ort_name).lower() == short:
            return _short(ort_name)
    others = sorted(_short(ort_name) for ort_name in known if ort_name not in _ORT_NAMES.values())
    raise UsageError(f"unknown provider {name!r}; known: auto, {', '.join(KNOWN)}; and by name {', '.join(others)}")


def ort_name(provider: str) -> str:
    """Return ONNX Runtime's name of a provider, such as `CUDAExecutionProvider` for `cuda`."""
    provider = canonical(provider)
    if provider in _ORT_NAMES:
        return _ORT_NAMES[provider]
    # A plug-in library calls its providers as it likes.
    return next((name for name in plugins.providers() if _short(name) == provider), f"{provider}ExecutionProvider")


def _short(name: str) -> str:
    return name[: -len(_SUFFIX)] if name.lower().endswith(_SUFFIX) else name


def resolve_ort_providers(name: str) -> list[str]:
    """Return what to give `onnxruntime.InferenceSession` as its providers: the wanted one, then the CPU's.

    `auto` is CUDA where the installed ONNX Runtime has it, else DirectML, else the CPU. That a provider is built in
    does not mean that it starts: compare `session.get_providers()[0]` with the first of these.

    Raises:
        UsageError: ONNX Runtime knows no such provider.
        ProviderError: the installed ONNX Runtime is built without it, or there is none; the message has the remedy.

    """
    ort = import_onnxruntime()
    provider, available = canonical(name), ort.get_available_providers()
    if provider == "auto":
        provider = next(p for p in ("cuda", "dml", "cpu") if p == "cpu" or _ORT_NAMES[p] in available)
    wanted = ort_name(provider)
    if wanted not in available:
        check_wheels(provider)  # more than the absence: the wheel may be there, overwritten
        found = f"onnxruntime {ort.__version__} has {', '.join(available)}"
        raise ProviderError(f"provider {provider} can not run here: {found}", remedy=remedy(provider))
    return list(dict.fromkeys([wanted, "CPUExecutionProvider"]))


def choose(wanted: str, made_for: str | None, attempt: Callable[[str], _T]) -> tuple[_T, ProviderChoice]:
    """Take the provider that was named, or with `auto` the first that really runs.

    `auto` tries the provider that the package was made for, then CUDA, DirectML and the CPU. A package made for the
    CPU stays there: its format is not what the others are fast with.

    Args:
        wanted: a provider's name, or `auto`.
        made_for: the provider that the package says it was made for.
        attempt: loads the package on a provider and returns the result; raises RuntimeError where that fails.

    Raises:
        UsageError: there is no such provider.
        ProviderError: the named provider can not run, or with `auto` none can; or a provider other than the CPU's is
            named, and wheels overwrite each other.

    """
    wanted = canonical(wanted)
    if wanted != "auto":
        if wanted != "cpu":
            check_wheels(wanted)
        try:
            return attempt(wanted), ProviderChoice(wanted, (Candidate(wanted, True, "it was asked for"),))
        except RuntimeError as error:
            raise ProviderError(
                f"provider {wanted} can not run here: {_why(wanted, error)}", remedy=remedy(wanted)
            ) from error
    tried: list[Candidate] = []
    for provider in _order(made_for):
        try:
            result = attempt(provider)
        except RuntimeError as error:
            tried.append(Candidate(provider, False, _why(provider, error)))
            continue
        reason = "the package was made for it" if provider == made_for else "it runs the package"
        return result, ProviderChoice(provider, (*tried, Candidate(provider, True, reason)))
    raise ProviderError(
        f"no provider can run this package: {'; '.join(map(str, tried))}", remedy="see: phi3-onnx doctor"
    )


def _why(provider: str, error: BaseException) -> str:
    found = installed_wheels()
    extra = extra_for(provider)
    if extra and found and not extra.wheels & {wheel.name for wheel in found}:
        names = " and ".join(f"{wheel.name} {wheel.version}" for wheel in found)
        return f"the installed {names} are built without it"
    return first_line(error)


def _order(made_for: str | None) -> list[str]:
    if made_for in (None, "cpu"):
        return ["cpu"]
    return list(dict.fromkeys([made_for, "cuda", "dml", "cpu"]))


def remedy(provider: str) -> str:
    """Return what makes a provider run here, as the end of an error message: most often one pip command."""
    if any(_short(name) == provider for name in plugins.providers()):
        return "look at the notes of its library, or take another --provider"
    extra = extra_for(provider)
    if extra is None:
        return (
            f"install the ONNX Runtime build that has {provider}, or name its plug-in (--provider-library "
            f"{provider.lower()}=PATH), or take another --provider"
        )
    if where := _missing_here(provider):
        return where
    installed = installed_wheels()
    if installed and {wheel.name for wheel in installed} == extra.wheels:
        return _driver_advice(provider, installed)
    return f"run: {_install_command(extra.name, installed)}"


def _missing_here(provider: str) -> str | None:
    if provider == "dml" and sys.platform != "win32":
        return "DirectML exists on Windows only; take --provider cuda or cpu"
    if provider == "cuda" and sys.platform == "darwin":
        return "CUDA exists on Linux and Windows only; take --provider cpu"
    return None


def _install_command(extra: str, installed: Sequence[Wheel]) -> str:
    install = f'pip install "phi3-onnx[{extra}]"'
    # All of them go, not just the wrong ones: a wheel that was overwritten, or whose neighbour is removed, is broken.
    names = " ".join(wheel.name for wheel in installed)
    return f"pip uninstall -y {names} && {install}" if names else install


def change_to(extra: Extra, installed: Sequence[Wheel]) -> str:
    """Return the commands that put an extra's ONNX Runtime in the place of those that are installed."""
    return f"run: {_install_command(extra.name, installed)}"


def install_any(installed: Sequence[Wheel]) -> str:
    """Return the commands that leave one ONNX Runtime, the CPU's or another, in place of those that are installed."""
    return f"{_install_command('cpu', installed)} {_OR_ANOTHER}"


def _driver_advice(provider: str, installed: Sequence[Wheel]) -> str:
    if provider == "cuda":
        found = next(cuda for wheel in installed if (cuda := cuda_of(wheel.name, wheel.version)))
        return (
            f"the CUDA build is installed, so look at the driver (nvidia-smi; CUDA {found} needs {least_driver(found)} "
            "or later) and at the libraries (phi3-onnx doctor)"
        )
    if provider == "dml":
        return "the DirectML build is installed, so look at the GPU's driver (run: dxdiag)"
    return "run: phi3-onnx doctor"


def installed_wheels() -> list[Wheel]:
    """Return every installed wheel of ONNX Runtime and of its GenAI library."""
    from importlib.metadata import PackageNotFoundError, version

    found: list[Wheel] = []
    for module, names in WHEELS.items():
        for name in names:
            try:
                found.append(Wheel(name, version(name), module))
            except PackageNotFoundError:
                continue
    return found


def clashing_wheels(installed: Sequence[Wheel] | None = None) -> list[tuple[Wheel, ...]]:
    """Return each group of installed wheels that overwrite each other's module; empty where all is well."""
    wheels = installed_wheels() if installed is None else installed
    groups = [tuple(wheel for wheel in wheels if wheel.module == module) for module in WHEELS]
    return [group for group in groups if len(group) > 1]


def check_wheels(provider: str = "auto") -> None:
    """Refuse an environment in which ONNX Runtime wheels overwrite each other.

    Args:
        provider: the one that was asked for, which the commands are to give.

    Raises:
        ProviderError: two such wheels are installed; the message has the commands that mend it.

    """
    wheels = installed_wheels()
    if clash := describe_clash(wheels):
        raise ProviderError(clash, remedy=_install_for(provider, wheels))


def wheel_warning() -> str | None:
    """Return what is wrong where ONNX Runtime wheels overwrite each other and the CPU runs all the same, else None."""
    wheels = installed_wheels()
    if clash := describe_clash(wheels):
        return f"{clash}, so the GPU's provider may be missing; run: {install_any(wheels)}"
    return None


def describe_clash(installed: Sequence[Wheel]) -> str | None:
    """Return which of the installed wheels overwrite each other's module, in a line; None where none do."""
    groups = [
        f"{' and '.join(f'{wheel.name} {wheel.version}' for wheel in group)} overwrite each other's module "
        f"{group[0].module}"
        for group in clashing_wheels(installed)
    ]
    return ", ".join(groups) or None


def _install_for(provider: str, installed: Sequence[Wheel]) -> str:
    if provider in ("cuda", "dml") and (extra := extra_for(provider)):
        return _missing_here(provider) or f"run: {_install_command(extra.name, installed)}"
    return f"run: {install_any(installed)}"


@cache
def load_libraries(provider: str) -> None:
    """Load what a provider's build of ONNX Runtime needs and finds by itself only on the system's path.

    That is CUDA, where it comes as wheels (the extra `cuda`): GenAI and a session look for it beside the system's
    libraries alone. To be called before a session is made or GenAI loads a model on this provider.

    Args:
        provider: by this project's name or ONNX Runtime's.

    """
    if canonical(provider) != "cuda":
        return
    preload = getattr(import_onnxruntime(), "preload_dlls", None)
    if preload is None:  # the CPU's wheel before 1.21
        return
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it misses; the provider's own error follows
        try:
            preload()
        except (OSError, RuntimeError) as error:
            said.write(first_line(error))
    for line in said.getvalue().splitlines():
        _LOG.debug("preload_dlls: %s", line)


def import_onnxruntime() -> Any:
    """Return the module `onnxruntime`, its telemetry off.

    Raises:
        ProviderError: it is not installed, or broken.

    """
    return _import(ONNXRUNTIME)


def import_genai(provider: str = "auto") -> Any:
    """Return the module `onnxruntime_genai`, its telemetry off.

    Args:
        provider: the one that was asked for, which the error's command is to give.

    Raises:
        ProviderError: it is not installed, or broken.

    """
    return _import(GENAI, provider)


def _import(name: str, provider: str = "auto") -> ModuleType:
    # Read by the native libraries when they are first loaded. Telemetry is on in GenAI unless this says otherwise.
    if os.environ.get(TELEMETRY_VARIABLE, "0") in ("", "0"):
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        check_versions(wheel.name for wheel in installed_wheels() if wheel.module == name)
    except VersionError as error:
        raise ProviderError(str(error)) from error
    try:
        module = __import__(name)
    except ImportError as error:
        missing = not any(wheel.module == name for wheel in installed_wheels())
        problem = "is not installed" if missing else f"does not load: {first_line(error)}"
        raise _import_error(name, problem, provider) from error
    if not hasattr(module, "InferenceSession") and not hasattr(module, "Model"):
        # What is left of a module when one of two wheels that shared it is uninstalled.
        raise _import_error(name, "is damaged, its files are gone", provider)
    if os.environ.get("ORT_DISABLE_TELEMETRY") == "1" and hasattr(module, "disable_telemetry_events"):
        module.disable_telemetry_events()
    plugins.register(module)
    return module


def _import_error(name: str, problem: str, provider: str) -> ProviderError:
    wheels = installed_wheels()
    clash = describe_clash(wheels)
    what = f"{name} {problem}{f' ({clash})' if clash else ''}"
    return ProviderError(what, remedy=_install_for(provider, wheels))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says something, without a final full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(". ") if lines else type(error).__name__


def _every_ort_provider() -> list[str]:
    # Those that any ONNX Runtime has a name for, and those that this one has beyond them (plugins).
    ort = import_onnxruntime()
    return list(dict.fromkeys([*ort.get_all_providers(), *ort.get_available_providers()]))
