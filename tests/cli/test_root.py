"""What every verb shares: `--quiet`, `--debug`, and an environment variable for each option."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from phi3_onnx.cli import VERBS, root

Make = Callable[..., Path]


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_option_has_an_environment_variable(verb: str) -> None:
    command = root.get_command(click.Context(root), verb)
    assert command is not None
    parent = click.Context(root, info_name="phi3-onnx", **root.context_settings)
    context = click.Context(command, info_name=verb, parent=parent)
    for option in command.params:
        if isinstance(option, click.Option) and option.expose_value:
            variable = f"PHI3_ONNX_{verb.upper()}_{option.name}".upper()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(variable, "7")
                assert option.resolve_envvar_value(context) == "7", variable


def test_a_variable_does_what_its_option_does(tiny_package: Make) -> None:
    folder = str(tiny_package("gqa"))
    variables = {"PHI3_ONNX_GENERATE_MAX_TOKENS": "3", "PHI3_ONNX_GENERATE_TEMPERATURE": "0"}
    named = CliRunner().invoke(root, ["generate", folder, "-p", "Hi", "-n", "3", "--temperature", "0"])
    result = CliRunner(env=variables).invoke(root, ["generate", folder, "-p", "Hi"])
    assert result.stdout == named.stdout
    assert "answer 3 tokens" in result.stderr
    wrong = CliRunner(env={"PHI3_ONNX_GENERATE_MAX_TOKENS": "few"}).invoke(root, ["generate", folder, "-p", "Hi"])
    assert wrong.exit_code == 2
    assert "'few' is not a valid integer" in wrong.stderr


@pytest.mark.parametrize(("flags", "variables"), [(["--quiet"], {}), ([], {"PHI3_ONNX_QUIET": "1"})])
def test_quiet_leaves_the_answer_alone(tiny_package: Make, flags: list[str], variables: Mapping[str, str]) -> None:
    arguments = ["generate", str(tiny_package("gqa")), "-p", "Hi", "-n", "3"]
    loud, quiet = CliRunner().invoke(root, arguments), CliRunner(env=variables).invoke(root, [*flags, *arguments])
    assert loud.stderr.count("\n") == 3
    assert (quiet.stdout, quiet.stderr) == (loud.stdout, "")


def test_a_quiet_chat_shows_answers_and_what_was_asked_for(tiny_package: Make) -> None:
    arguments = ["--quiet", "chat", str(tiny_package("gqa")), "-n", "3"]
    result = CliRunner().invoke(root, arguments, input="Hi\n/undo\n/bye\n")
    assert result.exit_code == 0
    assert result.stdout.strip("\n") != ""
    assert result.stderr == "undone\n"


@pytest.mark.parametrize(
    ("flags", "variables", "traced"),
    [
        ([], {}, False),
        (["--debug"], {}, True),
        ([], {"PHI3_ONNX_DEBUG": "1"}, True),
        ([], {"PHI3_ONNX_DEBUG": "0"}, False),
    ],
)
def test_debug_shows_the_traceback(flags: list[str], variables: Mapping[str, str], traced: bool) -> None:
    command = [sys.executable, "-m", "phi3_onnx.cli", *flags, "--quiet", "show", "no-such-package"]
    result = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert ("Traceback" in result.stderr) is traced
    if not traced:
        assert result.stderr.startswith("phi3-onnx: ") and result.stderr.count("\n") == 1


def test_a_misspelt_verb_is_told_the_nearest() -> None:
    ran = CliRunner().invoke(root, ["verfy", "package"])
    assert ran.exit_code == 2 and "No such command 'verfy'. Did you mean 'verify'?" in ran.stderr
    ran = CliRunner().invoke(root, ["zzz"])
    assert ran.exit_code == 2 and "No such command 'zzz'" in ran.stderr and "Did you mean" not in ran.stderr


@pytest.mark.parametrize("typed", ["", "\n"])
def test_an_empty_stdin_is_no_prompt(tiny_package: Make, typed: str) -> None:
    ran = CliRunner().invoke(root, ["generate", str(tiny_package("gqa"))], input=typed)
    assert str(ran.exception) == "stdin is empty: give a prompt: -p TEXT, -f FILE, or text on stdin"
