"""A package held against a package: the exact one, or itself on another provider; and what is refused."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from phi3_onnx.configs import PackageError, UsageError, find_target
from phi3_onnx.evaluate.parity import compare, corpus, package_reference
from phi3_onnx.evaluate.parity.package_reference import verify_by_package
from phi3_onnx.evaluate.parity.result import Verification
from phi3_onnx.runtime.engines.session import LogitsSession
from phi3_onnx.runtime.package import open_package

Make = Callable[..., Path]
STEPS = 8


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "TOKENS", 300)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return `elsewhere(change)`: the package runs on a provider that computes as the CPU's does, but for a change."""

    def install(change: Callable[[np.ndarray], np.ndarray] = lambda logits: logits) -> None:
        class Elsewhere(LogitsSession):
            def logits(self, ids: np.ndarray, **options: Any) -> Iterator[tuple[int, np.ndarray]]:
                yield from ((start, change(rows)) for start, rows in super().logits(ids, **options))

        def session(package: Path, provider: str, **options: Any) -> tuple[LogitsSession, None]:
            options.pop("made_for")
            if provider == "cpu":
                return LogitsSession(package, **options), None
            opened = Elsewhere(package, **options)
            opened.provider = "OpenVINOExecutionProvider"
            return opened, None

        monkeypatch.setattr(compare, "open_session", session)

    return install


def failures(found: Verification) -> set[str]:
    return {row.name for row in found.failures}


def test_a_quantized_package_keeps_its_targets_thresholds_against_the_exact_one(tiny_package: Make) -> None:
    exact, package = tiny_package("gqa"), tiny_package("gqa", "cpu-int4-rtn")
    found = verify_by_package(package, exact, steps=STEPS)
    assert found.passed
    assert found.target == "cpu-int4-rtn"
    assert found.reference == "tiny-gqa/cpu-fp32 on CPUExecutionProvider"
    assert found.self_test is None
    kl = next(row for row in found.rows if row.name == "mean_kl")
    assert kl.threshold == 0.6 and 1e-6 < kl.value < 0.6
    assert any("not compared" in line for line in found.skipped)


def test_a_wrong_weight_fails_against_the_exact_package(tiny_package: Make, tmp_path: Path) -> None:
    exact = tiny_package("gqa")
    package = Path(shutil.copytree(exact, tmp_path / "package"))
    spoil_norms(package)
    found = verify_by_package(package, exact, target=find_target("cpu-fp32"), steps=STEPS)
    assert {"max_abs_diff", "mean_kl", "p99_kl", "top1_agreement"} <= failures(found)


def spoil_norms(package: Path) -> None:
    """Double the weights of the last norm, inside the graph; the file's size is not looked at without a manifest."""
    (package / "phi3_onnx.json").rename(package / "manifest")
    model = onnx.load(package / "model.onnx", load_external_data=True)
    norm = next(value for value in model.graph.initializer if value.name == "model.norm.weight")
    norm.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(norm)[::-1].copy() * 2, norm.name))
    assert helper.tensor_dtype_to_np_dtype(norm.data_type) == np.float32
    onnx.save(model, package / "model.onnx")


def test_another_provider_is_held_against_the_cpu(tiny_package: Make, elsewhere: Callable[..., None]) -> None:
    elsewhere()
    package = tiny_package("gqa", "cpu-fp32")
    found = verify_by_package(package, package, provider="openvino", steps=STEPS)
    assert found.passed
    assert found.provider == "OpenVINOExecutionProvider"
    limits = {row.name: row.threshold for row in found.rows}
    assert limits == {
        "max_abs_diff": None,
        "mean_kl": 0.003,
        "p99_kl": 0.02,
        "top1_agreement": None,
        "perplexity_ratio": None,
        "greedy_agreement": None,
    }


def test_a_provider_that_computes_wrongly_fails(tiny_package: Make, elsewhere: Callable[..., None]) -> None:
    elsewhere(lambda logits: np.roll(logits, 1, axis=1))
    package = tiny_package("gqa", "cpu-int4-rtn")
    found = verify_by_package(package, package, provider="openvino", steps=STEPS)
    assert failures(found) == {"mean_kl", "p99_kl"}
    assert next(row.threshold for row in found.rows if row.name == "mean_kl") == 0.04


def test_a_provider_without_windows_is_compared_within_the_window(
    tiny_package: Make, elsewhere: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere()
    package = tiny_package("window")
    whole = verify_by_package(package, package, provider="openvino", steps=STEPS)
    monkeypatch.setattr("phi3_onnx.evaluate.parity.verify.unseen_window", lambda _graph, _provider: 8)
    found = verify_by_package(package, package, provider="openvino", steps=STEPS)
    assert found.metrics.positions < whole.metrics.positions
    assert found.metrics.positions == 8 * len(found.passages)
    assert any(line.startswith("beyond 8 tokens: not compared, OpenVINO") for line in found.skipped)


def test_a_package_is_not_held_against_itself_on_the_cpu(tiny_package: Make, tmp_path: Path) -> None:
    package = tiny_package("gqa")
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    for reference in (package, copy):
        with pytest.raises(UsageError, match="would be compared with itself on the CPU; name another provider"):
            verify_by_package(package, reference, provider="cpu", steps=STEPS)


def test_what_is_not_exact_is_no_reference(tiny_package: Make) -> None:
    with pytest.raises(UsageError, match="not known to be unquantized float32"):
        verify_by_package(tiny_package("gqa"), tiny_package("gqa", "cpu-int4-rtn"), steps=STEPS)


def test_another_models_package_is_refused(tiny_package: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = open_package(tiny_package("gqa"))
    smaller = replace(other, contract=replace(other.contract, vocab_size=7))
    monkeypatch.setattr(package_reference, "open_package", lambda folder: smaller if folder == tmp_path else other)
    with pytest.raises(PackageError, match="they are different models"):
        verify_by_package(other.folder, tmp_path, steps=STEPS)
