"""The self-test on the command line: said once, refused with exit code 3, and switched off."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from phi3_onnx.configs.manifest import SELF_TEST_NAME
from phi3_onnx.runtime.engines.session import LogitsSession
from phi3_onnx.runtime.proof.self_test import Distance, SelfTest, Text, expect

from .conftest import Run

TOKENS = tuple(range(5, 25))


@pytest.fixture
def package(tiny_package: Callable[..., Path], tmp_path: Path) -> Path:
    """Return a copy of a package with a self-test of its own logits."""
    folder = tmp_path / "package"
    shutil.copytree(tiny_package("gqa", "cpu-int4-rtn"), folder)
    session = LogitsSession(folder)
    ((_, logits),) = session.logits(np.array(TOKENS), chunk=len(TOKENS))
    text = Text(TOKENS, tuple(expect(logits[position], logits[position], position) for position in (9, 15, 18, 19)))
    content = SelfTest((text,), Distance(0.0, 0.0), Distance(0.015, 0.1), session.provider).to_json()
    (folder / SELF_TEST_NAME).write_text(content, encoding="utf-8")
    return folder


def spoil(package: Path) -> None:
    """Let the reference say the least likely things: what any provider computes is wrong then."""
    path = package / SELF_TEST_NAME
    table = json.loads(path.read_text())
    for entry in table["texts"][0]["expected"]:
        for name in ("log_probabilities", "measured"):
            entry[name].reverse()
    path.write_text(json.dumps(table))


def test_it_is_said_once(package: Path, run: Run) -> None:
    said = [run("generate", package, "-p", "Hello", "--max-tokens", 3).err.count("self-test on cpu") for _ in "12"]
    assert said == [1, 0]
    os.utime(package / "model.onnx", ns=(1, 1))
    assert run("--quiet", "generate", package, "-p", "Hello", "--max-tokens", 3).err == ""


def test_what_computes_wrongly_is_refused(package: Path, run: Run) -> None:
    spoil(package)
    ran = run("generate", package, "-p", "Hello", "--max-tokens", 3)
    assert (ran.code, ran.out) == (3, "")
    assert "is computed wrongly on cpu by onnxruntime-genai" in ran.err
    assert ran.err.count("\n") == 1
    assert run("generate", package, "-p", "Hello", "--max-tokens", 3, "--no-self-test").code == 0
