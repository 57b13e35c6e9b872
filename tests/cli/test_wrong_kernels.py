"""The command line on a machine that computes wrongly: refused with the figures, and `auto` goes on."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from phi3_onnx.configs.manifest import SELF_TEST_NAME
from phi3_onnx.runtime.engines.session import LogitsSession
from phi3_onnx.runtime.proof.self_test import Distance, SelfTest, Text, expect

MACHINE = Path(__file__).parents[1] / "doubles" / "wrong_kernels"
TOKENS = tuple(range(5, 25))
FIGURES = re.compile(
    r"is computed wrongly on (\w+) by (onnxruntime\S*) .*nats from where it was verified \(at most 0\.015\).*"
    r"logits 1\.\d+ times as far apart \(0\.95 to 1\.05\)"
)


@pytest.fixture
def make(tiny_package: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a target's package, with a self-test of its own logits."""

    def call(target: str) -> Path:
        folder = tmp_path / target
        shutil.copytree(tiny_package("gqa", target), folder)
        session = LogitsSession(folder)
        ((_, logits),) = session.logits(np.array(TOKENS), chunk=len(TOKENS))
        text = Text(TOKENS, tuple(expect(logits[position], logits[position], position) for position in (9, 15, 18, 19)))
        content = SelfTest((text,), Distance(0.0, 0.0), Distance(0.015, 0.1), session.provider).to_json()
        (folder / SELF_TEST_NAME).write_text(content, encoding="utf-8")
        return folder

    return call


def generate(package: Path, *options: str, wrong: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run `phi3-onnx generate` in a process of its own, on a machine where something is wrong."""
    command = [sys.executable, "-m", "phi3_onnx.cli", "generate", str(package), "-p", "Hello", "-n", "16"]
    machine = {} if wrong is None else {"PYTHONPATH": str(MACHINE), "PHI3_ONNX_TEST_WRONG": wrong}
    return subprocess.run(
        [*command, "--temperature", "0", *options],
        capture_output=True,
        text=True,
        env={**os.environ, **machine},
        check=False,
    )


@pytest.mark.parametrize(
    ("wrong", "options", "engine"),
    [
        ("onnxruntime", ("--engine", "ort"), "onnxruntime"),
        ("genai", ("--engine", "genai"), "onnxruntime-genai"),
        ("onnxruntime genai", (), "onnxruntime-genai"),
    ],
)
def test_an_engine_that_computes_wrongly_is_refused(
    make: Callable[[str], Path], wrong: str, options: tuple[str, ...], engine: str
) -> None:
    ran = generate(make("cpu-int4-rtn"), *options, wrong=wrong)
    assert (ran.returncode, ran.stdout) == (3, ""), ran.stderr
    found = FIGURES.search(ran.stderr.splitlines()[-1])
    assert found and found.groups() == ("cpu", engine), ran.stderr


def test_auto_goes_on_to_the_next_engine(make: Callable[[str], Path]) -> None:
    package = make("cpu-int4-rtn")
    ran = generate(package, wrong="onnxruntime")
    assert ran.returncode == 0, ran.stderr
    refused, passed, *_ = ran.stderr.splitlines()
    assert refused.startswith("warning: ") and (found := FIGURES.search(refused)), ran.stderr
    assert found.groups() == ("cpu", "onnxruntime")
    assert "self-test on cpu, onnxruntime-genai" in passed and ": passed in" in passed
    assert ran.stdout == generate(package, "--engine", "genai").stdout != ""


def test_a_provider_that_computes_wrongly_is_refused_and_auto_goes_on(make: Callable[[str], Path]) -> None:
    package = make("cuda-fp16")
    named = generate(package, "--engine", "ort", "--provider", "cuda", wrong="cuda")
    assert (named.returncode, named.stdout) == (3, ""), named.stderr
    assert (found := FIGURES.search(named.stderr)), named.stderr
    assert found.groups() == ("cuda", "onnxruntime")
    ran = generate(package, "--engine", "ort", wrong="cuda")
    assert ran.returncode == 0, ran.stderr
    assert "is computed wrongly on cuda" in ran.stderr.splitlines()[0]
    assert "self-test on cpu" in ran.stderr
    assert ran.stdout == generate(package, "--engine", "ort", "--provider", "cpu").stdout != ""
