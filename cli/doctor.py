"""`phi3-onnx doctor`."""

import json
from typing import TYPE_CHECKING

import click

from ..configs.sizes import size
from .screen import notice

if TYPE_CHECKING:
    from ..runtime.providers.devices import Device
    from ..runtime.providers.doctor import Report


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(as_json: bool) -> None:
    """Check what runs here: Python, packages, execution providers (each is tried), GPUs, memory, folders.

    Exit code 0: packages can run here, with warnings perhaps. Exit code 1: they cannot; each error comes with the
    command that fixes it.
    """
    from ..runtime.providers.doctor import examine

    report = examine()
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=1))
    else:
        _print(report)
    if not report.healthy:
        raise click.exceptions.Exit(1)


def _print(report: "Report") -> None:
    from ..runtime.providers.doctor import missing_extras

    _heading("Environment")
    _row("Python", f"{report.python} in {report.environment}")
    _row("platform", report.platform)
    installed = {name: version for name, version in report.packages.items() if version}
    for name, version in {**installed, **{wheel.name: wheel.version for wheel in report.wheels}}.items():
        _row(name, version)
    for extra in missing_extras():
        _row(f"[{extra}]", f'not installed: pip install "phi3-onnx[{extra}]"')
    _row("telemetry", "on" if report.telemetry else "off")
    for name, value in report.variables.items():
        _row(name, value)
    _heading("\nProviders, each tried")
    for trial in report.providers:
        _row(trial.provider, f"{'runs' if trial.runs else 'does not run'}: {trial.reason}")
    _heading("\nMachine")
    for device in report.devices:
        _row(f"{device.kind} {device.number}", describe(device))
    _row("cores", f"{report.physical_cores} physical, {report.threads} threads for one operator")
    _row("memory", f"{size(report.memory_available)} can be taken")
    _heading("\nFolders")
    _row("store", f"{report.store.path}: {len(report.stored_packages)} packages, {size(report.store.bytes)}")
    _row("cache", f"{report.cache.path}: {size(report.cache.bytes)}, can be deleted")
    _row("free disk", size(report.store.free_bytes))
    click.echo()
    for problem in report.problems:
        click.echo(f"{problem.severity}: {problem.what}\n  -> {problem.remedy}")
    if not report.problems:
        click.echo("Nothing is wrong.")


def describe(device: "Device") -> str:
    """Say in a line what a device is."""
    parts = [device.name]
    if device.memory is not None:
        free = f" ({size(device.free)} free)" if device.free is not None else ""
        parts.append(f"{size(device.memory)}{free}")
    if device.driver:
        parts.append(f"driver {device.driver}")
    if device.compute_capability:
        parts.append(f"compute capability {device.compute_capability}")
    if device.providers:
        parts.append(f"for --provider {' or '.join(device.providers)}")
    return ", ".join(parts)


def print_devices() -> None:
    """Print the processors of this machine, a line each."""
    from ..runtime.providers.devices import list_devices

    for device in list_devices():
        click.echo(f"{device.kind} {device.number}: {describe(device)}")
    notice("--device takes a GPU's number; to see whether a provider runs here: phi3-onnx doctor")


def _heading(text: str) -> None:
    click.echo(text)


def _row(name: str, value: str) -> None:
    click.echo(f"  {name:<18} {value}")
