"""What is locked is what is tested; bills of materials follow their format. Nothing is asked of a registry."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from . import bill
from .everywhere import unconditional

FOLDER = Path(__file__).parents[2]


def pins(path: Path) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==([\w.+!-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_lock_has_the_tested_versions_with_their_sums() -> None:
    locked, tested = pins(FOLDER / "locked.txt"), pins(FOLDER / "constraints.txt")
    again = "run: tests/supply/lock"
    assert {name: locked[name] for name in tested if name in locked} == {
        name: version for name, version in tested.items() if name in locked
    }, again
    assert {"torch", "onnxruntime", "llguidance", "cryptography"} <= locked.keys(), again
    entries = re.split(r"\n(?=\S)", (FOLDER / "locked.txt").read_text(encoding="utf-8").strip())
    assert len(entries) > 60 and all("--hash=sha256:" in entry for entry in entries)


def test_the_lock_has_what_the_project_asks_for() -> None:
    locked = pins(FOLDER / "locked.txt")
    extras = bill.PROJECT["optional-dependencies"]
    asked = [
        *bill.PROJECT["dependencies"],
        *(line for name in ("cpu", "export", "server", "hub", "sign") for line in extras[name]),
    ]
    names = {re.match(r"[\w.-]+", line).group().lower() for line in asked}  # pyright: ignore[reportOptionalMemberAccess]
    assert names <= locked.keys(), "run: tests/supply/lock"


def test_the_workflow_asks_about_every_locked_package(tmp_path: Path) -> None:
    """By its own command line; a dry run reads the files and asks nobody."""
    lock = (FOLDER / "locked.txt").read_text(encoding="utf-8")
    files = unconditional(lock)
    found = [line for text in files for line in re.findall(r"^[\w.-]+==[\w.+!-]+(?= \\$)", text, re.MULTILINE)]
    assert sorted(found) == sorted(re.findall(r"^[\w.-]+==[\w.+!-]+", lock, re.MULTILINE))
    assert sorted(re.findall(r"--hash=\S+", "".join(files))) == sorted(re.findall(r"--hash=\S+", lock))
    workflow = (FOLDER / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "python -m tests.supply.everywhere audited" in workflow
    (line,) = re.findall(r"^\s*pip-audit (.*)$", workflow, re.MULTILINE)
    *arguments, file = shlex.split(line)
    assert {"--strict", "--require-hashes"} <= set(arguments)
    assert file == "$file"
    pytest.importorskip("pip_audit", reason="pip-audit is part of the extra `test`")
    asked = 0
    for text in files:
        (tmp_path / "audited.txt").write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", *arguments, str(tmp_path / "audited.txt"), "--dry-run"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        asked += int(re.search(r"would have audited (\d+) packages", done.stderr).group(1))  # pyright: ignore[reportOptionalMemberAccess]
    assert asked == len(found)


INSTALLED: list[dict[str, Any]] = [
    {
        "metadata": {"name": "Some.Thing", "version": "1.0+cpu", "license_expression": "MIT OR Apache-2.0"},
        "download_info": {"archive_info": {"hashes": {"sha256": "ab" * 32}}},
    },
    {
        "metadata": {
            "name": "other",
            "version": "2",
            "license": "a text of\nmany lines",
            "classifier": ["License :: OSI Approved", "License :: OSI Approved :: BSD License", "Topic :: X"],
        }
    },
    {"metadata": {"name": "silent", "version": "3", "license": "x" * 500}},
]


def test_a_bill_says_what_each_package_is() -> None:
    found = bill.parts(INSTALLED)
    assert [(part.name, part.licence) for part in found] == [
        ("other", "BSD License"),
        ("silent", bill.UNKNOWN),
        ("some-thing", "MIT OR Apache-2.0"),
    ]
    document = bill.bill("cpu", found)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", document["serialNumber"])
    *_, thing = document["components"]
    assert thing["purl"] == "pkg:pypi/some-thing@1.0%2Bcpu"
    assert thing["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    references = {component["bom-ref"] for component in document["components"]}
    assert len(references) == 3 and references == set(document["dependencies"][0]["dependsOn"])
    assert document == bill.bill("cpu", bill.parts(INSTALLED)), "the same packages give the same bytes"


def test_the_table_names_each_package_once() -> None:
    found = bill.parts(INSTALLED)
    assert "| other | 2 | BSD License | cpu, server |" in bill.table({"cpu": found, "server": found[:1]})
