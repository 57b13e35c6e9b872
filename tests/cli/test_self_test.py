"""The self-test on the command line: said once, refused with exit code 3, and switched off."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from phi3_onnx.configs.manifest import MANIFEST_NAME, SELF_TEST_NAME
from phi3_onnx.runtime.engines.session import LogitsSession
from phi3_onnx.runtime.package import open_package
from phi3_onnx.runtime.proof import trial
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
    passed_over, refused = ran.err.splitlines()
    assert passed_over.startswith("warning: ") and "is computed wrongly on cpu by onnxruntime 1." in passed_over
    assert "is computed wrongly on cpu by onnxruntime-genai" in refused
    assert run("generate", package, "-p", "Hello", "--max-tokens", 3, "--no-self-test").code == 0


def test_doctor_replays_it_and_lists_what_is_proven(package: Path, run: Run) -> None:
    ran = run("doctor", package)
    assert ran.code == 0, ran.out
    assert "Self-test of tiny-gqa/cpu-int4-rtn: 4 positions of 1 texts, 0 nats from the reference on CPU" in ran.out
    assert ran.out.count("passed: ") == 2  # by GenAI, and by decode.onnx
    assert ran.out.count("passed on 20") == 2
    assert run("generate", package, "-p", "Hello", "--max-tokens", 3).err.count("self-test on") == 0


def test_doctor_says_what_is_computed_wrongly(package: Path, run: Run) -> None:
    spoil(package)
    ran = run("doctor", package, "--json")
    assert ran.code == 1
    report = json.loads(ran.out)
    assert not report["healthy"]
    assert [trial["passed"] for trial in report["package"]["trials"]] == [False, False]
    wrong = [problem for problem in report["problems"] if "is computed wrongly on cpu by genai" in problem["what"]]
    assert [problem["severity"] for problem in wrong] == ["error"]


def test_doctor_says_that_there_is_none(package: Path, run: Run) -> None:
    (package / SELF_TEST_NAME).unlink()
    ran = run("doctor", package)
    assert ran.code == 0
    assert "has no self-test, so nothing is proven\n  -> make one: phi3-onnx verify" in ran.out


def test_a_process_that_dies_is_a_row(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial.sys, "executable", "/bin/false")
    opened = open_package(package)
    tried = list(trial.try_package(opened, ["cpu"]))
    assert [entry.reason for entry in tried] == ["the process that tried it ended with exit code 1"] * 2
    problems = trial.package_problems(opened, tried)
    assert [problem.severity for problem in problems] == ["error", "error"]


def test_what_a_library_prints_at_the_end_hides_no_result(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime GenAI does on DirectML: two lines on stdout when the process ends."""
    said = 'early\n{"provider": "cpu", "engine": "genai", "passed": true, "reason": "0 nats"}\nWarning: no SDK\n'
    monkeypatch.setattr(trial.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said, returncode=0))
    assert [(entry.passed, entry.reason) for entry in trial.try_package(open_package(package), ["cpu"])] == [
        (True, "0 nats"),
        (True, "0 nats"),
    ]


def test_show_says_whether_there_is_one(package: Path, run: Run) -> None:
    assert "self-test  4 positions of 1 texts" in run("show", package).out
    (package / MANIFEST_NAME).unlink()
    assert "self-test  4 positions of 1 texts" in run("show", package).out
    (package / SELF_TEST_NAME).unlink()
    assert "self-test  none; phi3-onnx verify makes one" in run("show", package).out
