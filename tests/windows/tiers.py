"""Try the project on Windows, under Wine, with DirectML on a GPU made of the CPU.

    tests/windows/run [--tier 1] [--tier 2] [--whole] [--cache FOLDER] [--case NAME] [--json FILE] [--prepare]

Tier 1 is the command line, tier 2 DirectML; without --tier both run. --whole runs the small real model whole on
DirectML, which takes minutes. The first call makes the machine (minutes, 3 GB) and later ones use it again.

Exit code 0: all that was run is well. 1: a check failed. 77: the machine cannot be made here; the reason is said.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import packages
from machine import HERE, PROJECT, CannotPrepareError, Machine, download, say
from phi3_onnx.configs.store import cache_folder
from rich.console import Console
from rich.table import Table

CANNOT = 77
"""The exit code of test programs that were skipped."""
VARIABLE = "PHI3_ONNX_WINE"
ORT_VERSION = "1.24.4"
"""Linux's ONNX Runtime that logits are compared with: the version of DirectML's wheel in pyproject.toml."""
EXTRAS = ("directml", "server")
# Requirements of requirements that hold on Windows only, which pip on Linux passes over.
_WINDOWS_ONLY = ("colorama", "pyreadline3", "tzdata")
_TARGET_PLATFORM = (
    *("--only-binary", ":all:", "--platform", "win_amd64", "--python-version", "3.13"),
    *("--implementation", "cp", "--abi", "cp313", "--abi", "abi3", "--abi", "none"),
)
_COMMAND_LINE_CASES = ("cut", "gqa")
_LIMITS = {"command_line.py": 3600, "directml.py": 7200}
_INSTALL_LIMIT = 3600
"""Seconds."""


def default_root() -> Path:
    """Return where the machine lies: `PHI3_ONNX_WINE`, or a folder of the platform's cache."""
    return Path(os.environ.get(VARIABLE) or cache_folder() / "windows").expanduser()


def model_cache() -> Path:
    """Return where the small real model is kept between runs, as tests do."""
    return Path(os.environ.get("PHI3_ONNX_TEST_CACHE") or cache_folder()).expanduser()


def install(machine: Machine) -> None:
    """Build the project's wheel, and install it with its extras by Windows' own pip."""
    folder = machine.shared / "wheels"
    folder.mkdir(exist_ok=True)
    requirements = windows_requirements()
    known = folder / "requirements.txt"
    if not known.is_file() or known.read_text() != "\n".join(requirements):
        say("Wheels for Windows")
        download(folder, [*_TARGET_PLATFORM, *requirements, *_WINDOWS_ONLY])
        known.write_text("\n".join(requirements))
    wheel = build_wheel(folder)
    stamp, digest = machine.shared / "installed", hashlib.sha256(wheel.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    say(f"{wheel.name} with [{','.join(EXTRAS)}] by Windows' pip")
    pip = ("-m", "pip", "install", "-q", "--no-index", "--find-links", "Z:/w/wheels", "--no-warn-script-location")
    again = ("--force-reinstall", "--no-deps", f"Z:/w/wheels/{wheel.name}")
    for arguments in (again, (f"phi3-onnx[{','.join(EXTRAS)}]",)):
        try:
            done = machine.python(*pip, *arguments, timeout=_INSTALL_LIMIT)
        except subprocess.TimeoutExpired as error:
            reason = f"pip in Windows was not done after {_INSTALL_LIMIT} s; try again where the machine does less"
            raise CannotPrepareError(reason) from error
        if done.returncode:
            raise CannotPrepareError(f"pip in Windows failed: {done.stdout.strip()[-400:]}")
    stamp.write_text(digest)


def windows_requirements() -> list[str]:
    """Return what the project and its extras require on Windows, without markers (pip's would be those of Linux)."""
    from packaging.requirements import Requirement

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    found = []
    for requirement in map(Requirement, listed):
        if requirement.marker is None or requirement.marker.evaluate({"sys_platform": "win32", "os_name": "nt"}):
            requirement.marker = None
            found.append(str(requirement))
    return sorted(found)


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this working tree into `folder`; a build leaves its traces in a copy of the sources."""
    for path in folder.glob("phi3_onnx-*.whl"):
        path.unlink()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name)
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, capture_output=True, text=True, check=True
        )
        for line in listed.stdout.splitlines():
            if (PROJECT / line).is_file() and not line.startswith("tests/"):
                (source / line).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / line, source / line)
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
        # The same sources give the same bytes, so that what is installed is known by its hash.
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "946684800"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise CannotPrepareError(f"the wheel cannot be built: {done.stderr.strip()[-400:]}")
    return next(folder.glob("phi3_onnx-*.whl"))


def linux_site(machine: Machine) -> Path:
    """Return a folder with Linux's ONNX Runtime of the version that Windows has."""
    folder = machine.shared / f"linux-onnxruntime-{ORT_VERSION}"
    if not folder.is_dir():
        say(f"onnxruntime {ORT_VERSION} for Linux, to compare with")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, f"onnxruntime=={ORT_VERSION}"], check=True)
    return folder


def run_inside(machine: Machine, script: str, folder: Path, cases: Sequence[str]) -> list[dict[str, Any]]:
    """Run a script of `inside/` on the machine, and return the rows that it wrote."""
    shutil.copytree(HERE / "inside", machine.shared / "inside", dirs_exist_ok=True)
    results = machine.shared / "results.jsonl"
    results.unlink(missing_ok=True)
    started = f"Z:\\w\\inside\\{script}"
    try:
        done = machine.python(started, "results.jsonl", folder.name, *cases, timeout=_LIMITS[script])
        problem = f"it ended with {done.returncode}: {done.stdout.strip()[-300:]}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"it was not done after {_LIMITS[script]} s"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    if problem or not rows:
        rows.append(
            {"tier": script, "check": "runs", "case": "", "outcome": "failed", "detail": problem, "seconds": 0.0}
        )
    return rows


def tier_1(machine: Machine, folder: Path) -> list[dict[str, Any]]:
    """The command line, and packages for the CPU."""
    site = linux_site(machine)
    for case in packages.CASES:
        if case.name in _COMMAND_LINE_CASES:
            for target in ("cpu-fp32", "cpu-int4-rtn"):
                package = packages.export_case(case, target, folder, model_cache())
                np.save(package.with_name(package.name + ".npy"), packages.linux_logits(package, site))
    return run_inside(machine, "command_line.py", folder, _COMMAND_LINE_CASES)


def tier_2(machine: Machine, folder: Path, cases: Sequence[packages.Case]) -> list[dict[str, Any]]:
    """Packages for DirectML."""
    for case in cases:
        say(f"Package of {case.name}")
        package = packages.export_case(case, packages.TARGET, folder, model_cache())
        if case is not packages.WHOLE:
            packages.write_operators(package, folder / f"{case.name}-operators")
    return run_inside(machine, "directml.py", folder, [case.name for case in cases])


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table to stdout."""
    table = Table("tier", "check", "case", "outcome", "s", "detail")
    for row in rows:
        colour = {"ok": "green", "failed": "red"}.get(row["outcome"], "yellow")
        outcome = f"[{colour}]{row['outcome']}[/]"
        detail = row["detail"].replace("[", "\\[")
        table.add_row(row["tier"], row["check"], row["case"], outcome, str(row["seconds"]), detail)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", type=int, choices=(1, 2), action="append", help="which one; both unless told")
    parser.add_argument("--whole", action="store_true", help="the small real model whole on DirectML, and no more")
    parser.add_argument("--cache", type=Path, default=default_root(), help="folder of the machine [%(default)s]")
    parser.add_argument("--case", action="append", help="of tier 2: these models alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--prepare", action="store_true", help="make the machine, install the project, and end")
    args = parser.parse_args()
    machine, rows = Machine(args.cache), []
    if unknown := set(args.case or ()) - {case.name for case in packages.CASES}:
        parser.error(f"no case {min(unknown)}; there are {', '.join(case.name for case in packages.CASES)}")
    try:
        machine.prepare()
        install(machine)
        if not args.prepare:
            folder = machine.shared / "packages"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            chosen = [case for case in packages.CASES if not args.case or case.name in args.case]
            if not args.whole and 1 in (args.tier or (1, 2)):
                rows += tier_1(machine, folder)
            if args.whole or 2 in (args.tier or (1, 2)):
                rows += tier_2(machine, folder, [packages.WHOLE] if args.whole else chosen)
    except CannotPrepareError as reason:
        print(f"SKIPPED: Windows was not tried: {reason}", file=sys.stderr)
        return CANNOT
    if rows:
        show(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    failed = sum(row["outcome"] == "failed" for row in rows)
    say(f"{len(rows) - failed} of {len(rows)} checks are well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
