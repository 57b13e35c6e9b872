"""Rows, verdicts and what is written of them."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from phi3_onnx.configs import OutputError, VerificationError, read_manifest
from phi3_onnx.evaluate.parity.metrics import Metrics, Perplexity
from phi3_onnx.evaluate.parity.result import Row, Verification, record

Make = Callable[..., Path]


def row(value: float, threshold: float | None, bound: str = "at most", name: str = "mean_kl") -> Row:
    assert bound in ("at most", "at least")
    return Row(name, value, threshold, "at most" if bound == "at most" else "at least", "detail of the row")


def verification(*rows: Row) -> Verification:
    perplexity = Perplexity(2.0, 0.1, 99)
    broken = Perplexity(math.nan, math.nan, 99)
    return Verification(
        rows=rows,
        target="cpu-fp32",
        provider="CPUExecutionProvider",
        reference="somewhere",
        metrics=Metrics(100, math.inf, 0.1, 0.1, 0.2, 0.9, perplexity, broken),
        passages=("100 tokens: text",),
        skipped=(),
        versions={"torch": "2"},
        created="2024-01-01T00:00:00+00:00",
        seconds=1.0,
    )


@pytest.mark.parametrize(
    ("value", "threshold", "bound", "passed"),
    [
        (0.1, 0.1, "at most", True),
        (0.11, 0.1, "at most", False),
        (0.9, 0.9, "at least", True),
        (0.89, 0.9, "at least", False),
        (math.nan, 0.1, "at most", False),
        (math.nan, 0.9, "at least", False),
        (math.inf, 0.1, "at most", False),
        (math.nan, None, "at most", None),
        (5.0, None, "at most", None),
    ],
)
def test_a_row_keeps_its_threshold_or_not(
    value: float, threshold: float | None, bound: str, passed: bool | None
) -> None:
    assert row(value, threshold, bound).passed is passed


def test_rows_without_a_threshold_judge_nothing() -> None:
    found = verification(row(9.0, None), row(0.1, 0.2))
    assert found.passed
    found.check("a package")


def test_the_message_names_every_row_that_failed_in_one_line() -> None:
    found = verification(
        row(0.5, 0.1), row(1.0, None), row(0.75, 1.0, "at least", "token_ids"), row(0.99, 0.9, "at least", "ok")
    )
    assert not found.passed
    with pytest.raises(VerificationError) as caught:
        found.check("mini/cpu-fp32")
    assert str(caught.value) == (
        "mini/cpu-fp32 failed its verification: mean_kl is 0.5, must be at most 0.1; "
        "token_ids is 0.75, must be at least 1 (detail of the row)"
    )


def test_everything_is_json_even_what_is_not_finite() -> None:
    table = json.loads(json.dumps(verification(row(math.nan, 0.1)).to_dict(), allow_nan=False))
    assert table["passed"] is False
    assert table["rows"] == [
        {
            "name": "mean_kl",
            "value": None,
            "threshold": 0.1,
            "bound": "at most",
            "detail": "detail of the row",
            "passed": False,
        }
    ]
    assert table["metrics"]["max_abs_diff"] is None
    assert table["metrics"]["reference"]["perplexity"] == pytest.approx(math.exp(2))
    assert table["metrics"]["reference"]["standard_error"] == pytest.approx(math.exp(2) * 0.1)


@pytest.fixture
def package(tiny_package: Make, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_package("plain"), tmp_path / "package"))


def test_recording_changes_the_manifests_verification_and_nothing_else(package: Path) -> None:
    before, files = read_manifest(package), sorted(path.name for path in package.iterdir())
    assert before.verified is None
    record(package, verification(row(0.5, 0.1)))
    after = read_manifest(package)
    assert after.verified is False
    assert after.verification == verification(row(0.5, 0.1)).to_dict()
    assert {**vars(after), "verification": None} == vars(before)
    record(package, verification(row(0.05, 0.1)))
    assert read_manifest(package).verified is True
    assert sorted(path.name for path in package.iterdir()) == files


def test_a_failed_recording_leaves_the_old_manifest(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (package / "phi3_onnx.json").read_text()

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match=r"phi3_onnx\.json cannot be written: No space left on device"):
        record(package, verification(row(0.5, 0.1)))
    assert (package / "phi3_onnx.json").read_text() == text
    assert not [path for path in package.iterdir() if path.name.startswith(".")]


def test_a_package_without_a_manifest_has_no_place_for_figures(tmp_path: Path) -> None:
    record(tmp_path, verification(row(0.5, 0.1)))
    assert list(tmp_path.iterdir()) == []
