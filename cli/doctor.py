"""`phi3-onnx doctor`."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import click

from ..configs.origin import install_command
from ..configs.sizes import size
from .progress import progress_line
from .provider_library import provider_library
from .screen import notice
from .table import print_lines, table_lines

if TYPE_CHECKING:
    from ..runtime.engines.settings import EngineKind
    from ..runtime.package import Package
    from ..runtime.proof.record import Proof
    from ..runtime.proof.trial import PackageTrial
    from ..runtime.proof.tuning import Tuning
    from ..runtime.providers.devices import Device
    from ..runtime.providers.doctor import Problem, Report


@click.command()
@click.argument("package", required=False)
@click.option("--device", type=click.IntRange(0), help="Number of the GPU that the self-test runs on.")
@provider_library
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(package: str | None, device: int | None, as_json: bool) -> None:
    """Check what runs here: Python, packages, execution providers (each is tried), GPUs, memory, folders.

    With a package, its self-test is replayed on every provider that runs, and what this machine has proven is listed.

    Exit code 0: packages can run here, with warnings perhaps. Exit code 1: they cannot, or this package cannot; each
    error comes with the command that fixes it.
    """
    from ..runtime.package import open_package
    from ..runtime.providers.doctor import examine

    opened = None if package is None else open_package(package)
    report = examine()
    tested = None
    if opened is not None:
        tested = _test(opened, [trial.provider for trial in report.providers if trial.runs], device)
        report = replace(report, problems=(*report.problems, *tested.problems))
    if as_json:
        table = report.as_json() | ({"package": asdict(tested)} if tested else {})
        click.echo(json.dumps(table, indent=1))
    else:
        _print(report, tested)
    if not report.healthy:
        raise click.exceptions.Exit(1)


@dataclass(frozen=True)
class _Tested:
    """A package, and what is proven of it."""

    name: str
    self_test: str | None
    """What it holds, in words."""
    trials: tuple["PackageTrial", ...]
    proofs: tuple["Proof", ...]
    problems: tuple["Problem", ...]
    tunings: dict["EngineKind", "Tuning"]
    """What `tune` found that is of use here, by engine."""


def _test(package: "Package", providers: Sequence[str], device: int | None) -> _Tested:
    from ..runtime.proof.record import proofs_of
    from ..runtime.proof.self_test import read_self_test
    from ..runtime.proof.trial import package_problems, try_package
    from ..runtime.proof.tuning import tunings_of

    self_test = read_self_test(package.folder, package.contract.vocab_size)
    trials = []
    if self_test is not None:
        with progress_line("replaying the self-test") as progress:
            for trial in try_package(package, providers, device):
                progress(f"{trial.provider}, {trial.engine}")
                trials.append(trial)
    return _Tested(
        package.name,
        self_test and str(self_test),
        tuple(trials),
        tuple(proofs_of(package.folder)),
        tuple(package_problems(package, trials)),
        tunings_of(package.folder),
    )


def _print(report: "Report", tested: _Tested | None) -> None:
    from ..runtime.providers.doctor import missing_extras

    installed = {name: version for name, version in report.packages.items() if version}
    environment = {
        "Python": f"{report.python} in {report.environment}",
        "platform": report.platform,
        **installed,
        **{wheel.name: wheel.version for wheel in report.wheels},
        **{f"[{extra}]": f"not installed: {install_command(extra)}" for extra in missing_extras()},
        "telemetry": "on" if report.telemetry else "off",
    }
    lines = _section("Environment", environment.items())
    if report.variables:
        lines += _section("\nVariables", report.variables.items())
    lines += _section(
        "\nProviders, each tried",
        [(trial.provider, f"{'runs' if trial.runs else 'does not run'}: {trial.reason}") for trial in report.providers],
    )
    machine = [(f"{device.kind} {device.number}", describe(device)) for device in report.devices]
    machine += [
        ("cores", f"{report.physical_cores} physical, {report.threads} threads for one operator"),
        ("memory", f"{size(report.memory_available)} can be taken"),
    ]
    lines += _section("\nMachine", machine)
    folders = [
        ("store", f"{report.store.path}: {_packages(report.stored_packages)}, {size(report.store.bytes)}"),
        ("cache", f"{report.cache.path}: {size(report.cache.bytes)}, can be deleted"),
        ("free disk", size(report.store.free_bytes)),
    ]
    lines += _section("\nFolders", folders)
    if tested:
        lines += _tested_lines(tested)
    lines.append("")
    lines += [f"{problem.severity}: {problem.what}\n  -> {problem.remedy}" for problem in report.problems]
    print_lines(lines if report.problems else [*lines, "Nothing is wrong."])


def _packages(names: Sequence[str]) -> str:
    return "1 package" if len(names) == 1 else f"{len(names)} packages"


def _tested_lines(tested: _Tested) -> list[str]:
    outcomes = {True: "passed", False: "computed wrongly", None: "cannot run"}
    trials = [
        (f"{trial.provider}, {trial.engine}", f"{outcomes[trial.passed]}: {trial.reason}") for trial in tested.trials
    ]
    lines = _section(f"\nSelf-test of {tested.name}: {tested.self_test or 'none'}", trials)
    if tested.proofs:
        proofs = [
            (
                proof.key.provider,
                f"{outcomes[proof.passed]} on {proof.created} by {proof.key.engine} on {proof.key.device}",
            )
            for proof in tested.proofs
        ]
        lines += _section("\nProven here", proofs)
    if tested.tunings:
        tunings = [
            (kind, f"{tuning}, found on {tuning.created}: {tuning.found}") for kind, tuning in tested.tunings.items()
        ]
        lines += _section("\nTuned here", tunings)
    return lines


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


def _section(title: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    return [title, *table_lines(list(rows), first=17, indent=2)]
