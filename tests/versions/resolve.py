"""Resolve an extra as pip does on its platform, with nothing installed, and print the versions it picks.

    python tests/versions/resolve.py cuda cuda12 winml     # by default: all that bring ONNX Runtime
    python tests/versions/resolve.py export --platform manylinux_2_28_x86_64 --python 3.14

pip judges markers such as `sys_platform` by the machine it runs on: they are judged here, by the extra's own platform.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phi3_onnx.configs.extras import EXTRAS

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINUX = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64")
_NAMES = {each.name: each for each in EXTRAS}


def requirements(extra: str, system: str) -> list[str]:
    """Return what an extra asks for on a system (as `sys.platform` names it), and what every verb needs."""
    asked = []
    for line in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]):
        requirement, _, marker = line.partition(";")
        if marker and not _holds(marker.strip(), system):
            continue
        asked.append(requirement.strip())
    return asked


def _holds(marker: str, system: str) -> bool:
    found = re.fullmatch(r"sys_platform (==|!=) '(\w+)'", marker)
    if not found:
        raise ValueError(f"a marker this does not know: {marker}")
    return (found.group(2) == system) == (found.group(1) == "==")


def resolve(extra: str, platforms: Sequence[str] = (), python: str = "3.12") -> dict[str, str]:
    """Return the versions that pip picks for an extra, by distribution; see `report`."""
    installed = report(extra, platforms, python)
    found = {entry["metadata"]["name"].lower().replace("_", "-"): entry["metadata"]["version"] for entry in installed}
    return dict(sorted(found.items()))


def report(extra: str, platforms: Sequence[str] = (), python: str = "3.12") -> list[dict[str, Any]]:
    """Return what pip reports of each distribution that it picks for an extra: metadata, file and its sums.

    Args:
        extra: its name.
        platforms: wheel tags; by default those of 64-bit Linux, or of 64-bit Windows where it exists there only.
        python: version of Python.

    Raises:
        RuntimeError: nothing fits; with what pip says.

    """
    windows = extra in _NAMES and "linux" not in _NAMES[extra].platforms
    tags = platforms or (("win_amd64",) if windows else LINUX)
    system = "win32" if tags[0].startswith("win") else "darwin" if tags[0].startswith("mac") else "linux"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--only-binary=:all:", "--target", folder, "--python-version", python, "--report", str(path)]
        command += [part for tag in tags for part in ("--platform", tag)]
        done = subprocess.run(
            [*command, *requirements(extra, system)], capture_output=True, text=True, timeout=900, check=False
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise RuntimeError(f"[{extra}] on {tags[0]}, Python {python}: {' '.join(errors) or done.stderr}")
        return json.loads(path.read_text(encoding="utf-8"))["install"]


def main() -> int:
    """Resolve what the command line names; exit code 1 where one of them does not resolve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", default=[*_NAMES])
    parser.add_argument("--platform", action="append", default=[], help="wheel tag; may be repeated")
    parser.add_argument("--python", default="3.12")
    arguments = parser.parse_args()
    failed = 0
    for extra in arguments.extras:
        try:
            found = resolve(extra, arguments.platform, arguments.python)
            print(f"[{extra}] {' '.join(f'{name}=={version}' for name, version in found.items())}", flush=True)
        except RuntimeError as error:
            failed = 1
            print(error, file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
