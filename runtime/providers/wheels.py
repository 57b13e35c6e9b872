"""The installed wheels of ONNX Runtime and GenAI, those that overwrite each other, and the commands that fix it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ...configs import ProviderError
from ...configs.extras import WHEELS, Extra, extra_for
from ...configs.origin import install_command

_OR_ANOTHER = "(or [cuda], or [directml])"


@dataclass(frozen=True)
class Wheel:
    """An installed wheel of ONNX Runtime or of its GenAI library."""

    name: str
    version: str
    module: str
    """The module it installs: `onnxruntime` or `onnxruntime_genai`."""


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


def describe_clash(installed: Sequence[Wheel]) -> str | None:
    """Return which of the installed wheels overwrite each other's module, in a line; None where none do."""
    groups = [
        f"{' and '.join(f'{wheel.name} {wheel.version}' for wheel in group)} overwrite each other's module "
        f"{group[0].module}"
        for group in clashing_wheels(installed)
    ]
    return ", ".join(groups) or None


def check_wheels(provider: str = "auto") -> None:
    """Refuse an environment in which ONNX Runtime wheels overwrite each other.

    Args:
        provider: the one that was asked for, which the commands are to give.

    Raises:
        ProviderError: two such wheels are installed; the message has the commands that fix it.

    """
    wheels = installed_wheels()
    if clash := describe_clash(wheels):
        raise ProviderError(clash, remedy=install_for(provider, wheels))


def wheel_warning() -> str | None:
    """Return what is wrong where ONNX Runtime wheels overwrite each other and the CPU runs all the same, else None."""
    wheels = installed_wheels()
    if clash := describe_clash(wheels):
        return f"{clash}, so the GPU's provider may be missing; run: {install_any(wheels)}"
    return None


def change_to(extra: Extra, installed: Sequence[Wheel]) -> str:
    """Return the commands that put an extra's ONNX Runtime in the place of those that are installed."""
    return f"run: {_install_command(extra.name, installed)}"


def install_any(installed: Sequence[Wheel]) -> str:
    """Return the commands that leave one ONNX Runtime, the CPU's or another, in place of those that are installed."""
    return f"{_install_command('cpu', installed)} {_OR_ANOTHER}"


def install_for(provider: str, installed: Sequence[Wheel]) -> str:
    """Return the commands that leave the ONNX Runtime with this provider in place of those that are installed."""
    if provider in ("cuda", "dml") and (extra := extra_for(provider)):
        return missing_here(provider) or f"run: {_install_command(extra.name, installed)}"
    return f"run: {install_any(installed)}"


def missing_here(provider: str) -> str | None:
    """Return why no machine of this kind has a provider; None where one may."""
    if provider == "dml" and sys.platform != "win32":
        return "DirectML exists on Windows only; take --provider cuda or cpu"
    if provider == "cuda" and sys.platform == "darwin":
        return "CUDA exists on Linux and Windows only; take --provider cpu"
    return None


def _install_command(extra: str, installed: Sequence[Wheel]) -> str:
    install = install_command(extra)
    # All of them go, not just the wrong ones: a wheel that was overwritten, or whose neighbour is removed, is broken.
    names = " ".join(wheel.name for wheel in installed)
    return f"pip uninstall -y {names} && {install}" if names else install
