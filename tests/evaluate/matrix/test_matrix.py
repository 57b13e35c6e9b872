"""The validation matrix: its cells, its cross-checks, and what it writes."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from phi3_onnx.cli import root
from phi3_onnx.configs import UsageError, find_target
from phi3_onnx.evaluate.matrix.cross_check import Sample, cross_checks
from phi3_onnx.evaluate.matrix.plan import plan_matrix
from phi3_onnx.runtime.providers.choice import resolve_ort_providers

Factory = Callable[..., Path]


def matrix(*arguments: str | Path) -> Result:
    return CliRunner().invoke(root, ["matrix", *map(str, arguments)])


def without(provider: str) -> None:
    from phi3_onnx.configs import ProviderError

    try:
        resolve_ort_providers(provider)
    except ProviderError:
        return
    pytest.skip(f"{provider} runs here")


@pytest.fixture(scope="module")
def packages(tiny: Factory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which one run made two packages, with its reports."""
    folder = tmp_path_factory.mktemp("matrix")
    reports = [f"--{kind}={folder}/report.{kind}" for kind in ("json", "junit", "markdown")]
    targets = ["-t", "cpu-fp32,cuda-fp16", "--steps", "8"]
    result = matrix(tiny("gqa"), *targets, "-o", folder / "packages", *reports)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return folder


def test_each_target_has_a_cell_for_each_provider(packages: Path) -> None:
    without("cuda")
    report = json.loads((packages / "report.json").read_text(encoding="utf-8"))
    cells = {(cell["target"], cell["provider"]): cell for cell in report["cells"]}
    assert {key: cell["outcome"] for key, cell in cells.items()} == {
        ("cpu-fp32", "cpu"): "pass",
        ("cpu-fp32", "cuda"): "not run",
        ("cuda-fp16", "cpu"): "pass",
        ("cuda-fp16", "cuda"): "not run",
    }
    assert cells["cuda-fp16", "cpu"]["reason"] == "on CPUExecutionProvider"
    assert "pip install" in cells["cuda-fp16", "cuda"]["reason"]


def test_each_cell_that_ran_has_its_speed_in_every_report(packages: Path) -> None:
    cells = json.loads((packages / "report.json").read_text(encoding="utf-8"))["cells"]
    speeds = {cell["target"]: cell["speed"] for cell in cells if cell["verification"]}
    assert list(speeds) == ["cpu-fp32", "cuda-fp16"]
    heading, *rows = (
        [text.strip() for text in line.split("|")]
        for line in (packages / "report.markdown").read_text(encoding="utf-8").splitlines()
        if line.startswith(("| target", *(f"| {target} | cpu |" for target in speeds)))
    )
    cases = ElementTree.parse(packages / "report.junit").getroot().iter("testcase")
    outputs = {case.get("classname"): case.findtext("system-out") for case in cases if case.get("name") == "speed"}
    for row, (target, speed) in zip(rows, speeds.items(), strict=True):
        assert (speed["prompt_tokens"], speed["decoded_tokens"], speed["repeat"]) == (256, 32, 3)
        prefill, decode = speed["prefill_tokens_per_second"], speed["decode_tokens_per_second"]
        assert min(prefill, decode) > 0
        texts = [row[heading.index(name)] for name in ("prefill tok/s", "decode tok/s")]
        assert texts == [f"{prefill:.0f}", f"{decode:.1f}"]
        assert f"prefill {texts[0]} tok/s, decode {texts[1]} tok/s" in (outputs[f"{target}.cpu"] or "")


def test_packages_are_held_against_each_other(packages: Path) -> None:
    report = json.loads((packages / "report.json").read_text(encoding="utf-8"))
    (check,) = report["cross_checks"]
    assert (check["first"], check["second"]) == ("cpu-fp32 (CPU)", "cuda-fp16 (CPU)")
    # Not the same numbers, and no further apart than float16 makes them.
    assert 0 < check["mean_kl"] < 1e-3
    assert check["passed"]


def test_junit_has_a_case_for_each_row(packages: Path) -> None:
    suites = ElementTree.parse(packages / "report.junit").getroot()
    names = [suite.get("name") for suite in suites]
    assert names == ["cpu-fp32", "cuda-fp16", "cross-checks"]
    cases = {(case.get("classname"), case.get("name")) for case in suites.iter("testcase")}
    assert {("cpu-fp32", "weights"), ("cpu-fp32.cpu", "mean_kl"), ("cuda-fp16.cpu", "token_ids")} <= cases
    assert suites[0].get("failures") == "0"


def test_markdown_is_one_table_and_can_be_added_to(packages: Path) -> None:
    text = (packages / "report.markdown").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| cpu-fp32 | cpu | pass |")]
    assert len(rows) == 1
    widths = {line.count(" | ") for line in text.split("Packages against")[0].splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_what_is_there_is_used_again_and_must_be_of_the_same_source(packages: Path, tiny: Factory) -> None:
    made = (packages / "packages/cpu-fp32/model.onnx").stat().st_mtime_ns
    arguments = ("-t", "cpu-fp32", "-p", "cpu", "--no-speed", "--steps", "1", "-o", packages / "packages")
    result = matrix(tiny("gqa"), *arguments)
    assert result.exit_code == 0
    assert "no speed: not asked for" in result.output
    assert (packages / "packages/cpu-fp32/model.onnx").stat().st_mtime_ns == made
    result = matrix(tiny("plain"), *arguments)
    assert "is a cpu-fp32 package of" in str(result.exception)
    assert "--force" in str(result.exception)


def test_a_required_provider_has_to_run(packages: Path, tiny: Factory) -> None:
    without("cuda")
    arguments = ("-t", "cuda-fp16", "-p", "cpu", "--no-speed", "--steps", "1", "-o", packages / "packages")
    result = matrix(tiny("gqa"), *arguments, "--require", "cuda")
    assert "cuda-fp16 on cuda: provider cuda cannot run here" in str(result.exception)
    assert getattr(result.exception, "exit_code", None) == 1


def test_one_column_is_one_provider() -> None:
    with pytest.raises(UsageError, match="not auto"):
        plan_matrix(["cpu-fp32"], ["auto"])


def test_packages_rounded_alike_have_to_agree() -> None:
    logits = np.random.default_rng(0).normal(size=(16, 50)).astype(np.float32)

    def sample(target: str, values: np.ndarray) -> Sample:
        return Sample(find_target(target), "cpu", "CPUExecutionProvider", values)

    checks = {
        (check.first.split()[0], check.second.split()[0]): check.passed
        for check in cross_checks(
            [
                sample("cuda-int4-rtn", logits[::-1]),
                sample("cpu-int4-rtn", logits),
                sample("cpu-fp32", logits),
                sample("cpu-int4-awq", logits[::-1]),
            ]
        )
    }
    assert checks == {
        ("cpu-fp32", "cpu-int4-rtn"): None,
        ("cpu-fp32", "cuda-int4-rtn"): None,
        ("cpu-fp32", "cpu-int4-awq"): None,
        ("cpu-int4-rtn", "cuda-int4-rtn"): False,
    }


def test_one_calibrated_package_has_to_agree_with_itself() -> None:
    logits = np.random.default_rng(0).normal(size=(16, 50)).astype(np.float32)
    target = find_target("dml-int4-awq")
    samples = [
        Sample(target, "cpu", "CPUExecutionProvider", logits),
        Sample(target, "dml", "DmlExecutionProvider", logits),
    ]
    (check,) = cross_checks(samples)
    assert check.passed
    assert (check.first, check.second) == ("dml-int4-awq (CPU)", "dml-int4-awq (Dml)")
