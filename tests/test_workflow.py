"""The workflow file, checked without GitHub: its schema, and that its commands are ours."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from phi3_onnx.cli import root

FOLDER = Path(__file__).parents[1]
WORKFLOW = FOLDER / ".github" / "workflows" / "ci.yml"


def test_it_follows_the_schema_of_github() -> None:
    """`check-jsonschema` brings the schema with it, so nothing is fetched."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(WORKFLOW)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def commands() -> list[list[str]]:
    text = re.sub(r"\$\{\{.*?\}\}", "cpu", WORKFLOW.read_text(encoding="utf-8"))
    found = re.findall(r"^\s*\S*phi3-onnx ([^\n;|]*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in found]


def test_there_are_commands_to_check() -> None:
    assert {arguments[0] for arguments in commands()} >= {"matrix", "--version", "targets"}


@pytest.mark.parametrize("arguments", [a for a in commands() if not a[0].startswith("-")], ids=lambda a: a[0])
def test_each_command_takes_its_options(arguments: list[str]) -> None:
    context = click.Context(root)
    verb = root.get_command(context, arguments[0])
    assert verb is not None
    verb.make_context(arguments[0], arguments[1:], parent=context)  # raises where an option is unknown


def test_the_files_it_names_exist() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    for name in re.findall(r"hashFiles\('([^']+)'\)", text):
        assert (FOLDER / name).is_file(), name
    assert (FOLDER / ".ci" / "run").is_file()
