"""`phi3-onnx bench`: a line for each package, and what is wrong before anything runs."""

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner
from phi3_onnx.cli import root
from phi3_onnx.configs import PackageError

SHORT = ["--prompt", "8", "--decode", "2", "--repeat", "1", "--threads", "1", "--provider", "cpu"]


def test_a_line_for_each_package(tiny_package: Callable[..., Path]) -> None:
    package = tiny_package("plain")
    ran = CliRunner().invoke(root, ["bench", str(package), *SHORT, "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert (found["prompt_tokens"], found["decoded_tokens"], found["repeat"]) == (8, 2, 1)
    assert found["package"] == "tiny-plain/cpu-fp32"
    assert found["prefill_tokens_per_second"] > 0
    assert found["decode_tokens_per_second"] > 0
    assert found["peak_memory_bytes"] > 10 << 20


def test_a_package_that_is_not_there_stops_all_of_them(tiny_package: Callable[..., Path]) -> None:
    ran = CliRunner().invoke(root, ["bench", str(tiny_package("plain")), "nothing", *SHORT])
    assert isinstance(ran.exception, PackageError)
    assert "'nothing' is neither a folder nor a package" in str(ran.exception)
    assert ran.stdout == ""


def test_a_package_has_to_be_named() -> None:
    ran = CliRunner().invoke(root, ["bench"])
    assert ran.exit_code == 2
    assert "PACKAGES" in ran.output
