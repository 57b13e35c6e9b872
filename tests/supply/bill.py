"""What each extra brings: a bill of materials (CycloneDX 1.6, JSON) for each, and one table of all licences.

    python -m tests.supply.bill --out bills               # every extra that users install
    python -m tests.supply.bill cpu server --out bills --licences docs/reference/licences.md

Nothing is installed: pip resolves each extra for 64-bit Linux (or Windows, where it exists there only) and reports what
it would fetch. It asks the package registry.
"""

import argparse
import json
import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3_onnx.configs.extras import all_extras

from tests.versions.resolve import PROJECT, report

_NOT_OURS = ("test", "docs")
"""Extras for the project's own work."""
_LONGEST = 60
UNKNOWN = "not stated"
# What the packages say in their licence files, where their metadata says nothing that a machine could read.
_READ: Mapping[str, str] = {}


@dataclass(frozen=True)
class Part:
    """A package that pip would install."""

    name: str
    version: str
    licence: str
    sha256: str | None
    about: str


def parts(installed: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Return what the entries of pip's report say of each package, by name."""
    found: list[Part] = []
    for entry in installed:
        metadata = entry["metadata"]
        hashes = entry.get("download_info", {}).get("archive_info", {}).get("hashes", {})
        name = re.sub(r"[-_.]+", "-", metadata["name"]).lower()
        licence = _licence(metadata)
        if licence == UNKNOWN:
            licence = _READ.get(name, UNKNOWN)
        found.append(Part(name, metadata["version"], licence, hashes.get("sha256"), metadata.get("summary", "")))
    return sorted(found, key=lambda part: part.name)


def _licence(metadata: Mapping[str, Any]) -> str:
    """Return a package's licence: the SPDX expression, the classifiers, or the first line of what it calls so."""
    if expression := metadata.get("license_expression"):
        return expression
    named = [text.rpartition(" :: ")[2] for text in metadata.get("classifier", ()) if text.startswith("License ::")]
    named = [name for name in named if name != "OSI Approved"]
    if named:
        return ", ".join(sorted(set(named)))
    line = (metadata.get("license") or "").strip().split("\n")[0].strip()
    return line if 0 < len(line) <= _LONGEST else UNKNOWN


def bill(extra: str, found: Sequence[Part]) -> dict[str, Any]:
    """Return the CycloneDX document of an extra."""
    own = {
        "type": "library",
        "bom-ref": "phi3-onnx",
        "name": f"{PROJECT['name']}[{extra}]",
        "version": PROJECT["version"],
    }
    seed = json.dumps([extra, PROJECT["version"], [(part.name, part.version) for part in found]])
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, seed)}",
        "version": 1,
        "metadata": {"component": {**own, "licenses": [{"license": {"id": "MIT"}}]}},
        "components": [_component(part) for part in found],
        "dependencies": [
            {"ref": "phi3-onnx", "dependsOn": [_purl(part) for part in found]},
            *({"ref": _purl(part)} for part in found),
        ],
    }


def _purl(part: Part) -> str:
    return f"pkg:pypi/{part.name}@{part.version.replace('+', '%2B')}"


def _component(part: Part) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": _purl(part),
        "name": part.name,
        "version": part.version,
        "purl": _purl(part),
        "description": part.about,
    }
    if part.licence != UNKNOWN:
        component["licenses"] = [{"license": {"name": part.licence}}]
    if part.sha256:
        component["hashes"] = [{"alg": "SHA-256", "content": part.sha256}]
    return component


def table(by_extra: Mapping[str, Sequence[Part]]) -> str:
    """Return the page of licences: each package once, with the extras that bring it."""
    rows: dict[str, tuple[Part, list[str]]] = {}
    for extra, found in by_extra.items():
        for part in found:
            rows.setdefault(part.name, (part, []))[1].append(extra)
    lines = [
        "# Licences of what the extras bring",
        "",
        "As the packages state them, in the versions that pip takes for 64-bit Linux (for Windows where an extra is",
        "for it alone), dependencies of dependencies included. `python -m tests.supply.bill` writes this page, and a",
        "CycloneDX file for each extra. phi3-onnx itself is under the MIT licence.",
        f"Extras: {', '.join(by_extra)}.",
        "",
        "| package | version | licence | extras |",
        "|---|---|---|---|",
    ]
    for name, (part, extras) in sorted(rows.items()):
        lines.append(f"| {name} | {part.version} | {part.licence} | {', '.join(extras)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the files; exit code 1 where an extra does not resolve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", default=[extra for extra in all_extras() if extra not in _NOT_OURS])
    parser.add_argument("--out", type=Path, required=True, help="folder for EXTRA.cdx.json")
    parser.add_argument("--licences", type=Path, help="the page to write")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Part]] = {}
    failed = 0
    for extra in arguments.extras:
        try:
            found[extra] = parts(report(extra))
        except RuntimeError as error:
            failed = 1
            print(error, file=sys.stderr)
            continue
        path = arguments.out / f"{extra}.cdx.json"
        path.write_text(json.dumps(bill(extra, found[extra]), indent=1) + "\n", encoding="utf-8")
        unknown = [part.name for part in found[extra] if part.licence == UNKNOWN]
        print(f"{path}: {len(found[extra])} packages{', no licence stated: ' + ', '.join(unknown) if unknown else ''}")
    if arguments.licences:
        arguments.licences.write_text(table(found), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
