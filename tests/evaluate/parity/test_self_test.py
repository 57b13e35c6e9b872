"""Verification makes a self-test that finds planted faults on every target and travels with the package."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from phi3_onnx.configs import OutputError, PackageError, SelfTestError, Target, Thresholds, read_manifest, targets
from phi3_onnx.configs.manifest import MANIFEST_NAME, SELF_TEST_NAME, check_files
from phi3_onnx.evaluate.parity import corpus
from phi3_onnx.evaluate.parity.result import record
from phi3_onnx.evaluate.parity.verify import verify
from phi3_onnx.export import export, open_checkpoint
from phi3_onnx.runtime import load
from phi3_onnx.runtime.proof.self_test import read_self_test

Make = Callable[..., Path]
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take 300 tokens of the text: the self-test has texts of its own."""
    monkeypatch.setattr(corpus, "TOKENS", 300)


@pytest.fixture(scope="module")
def verified(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return `verified(target)`: the folder of a tiny package with its self-test, shared by the tests of this file."""
    made: dict[str, Path] = {}

    def make(target: str) -> Path:
        if target not in made:
            folder = export(tiny("gqa"), uncalibrated(targets()[target]), tmp_path_factory.mktemp("verified") / target)
            record(folder, verify(folder, open_checkpoint(tiny("gqa")), provider="cpu", steps=2))
            made[target] = folder
        return made[target]

    return make


def uncalibrated(target: Target) -> Target:
    """Return a target with its formats and kernels, and weights that are rounded without a calibration's minutes."""
    quantization = target.quantization
    return replace(target, quantization=replace(quantization, method="rtn")) if quantization else target


def multiply(
    chosen: Callable[[onnx.NodeProto], bool],
    factor: Callable[[onnx.NodeProto], np.ndarray],
    *,
    which: slice = slice(None),
) -> Change:
    """Return a change of a graph: the outputs of some nodes are multiplied."""

    def change(model: onnx.ModelProto) -> None:
        kv = next(value for value in model.graph.input if value.name.startswith("past_key_values."))
        dtype = helper.tensor_dtype_to_np_dtype(kv.type.tensor_type.elem_type)
        for node in list(filter(chosen, model.graph.node))[which]:
            name, values = node.output[0], factor(node).astype(dtype)
            node.output[0] = f"{name}.right"
            model.graph.initializer.append(numpy_helper.from_array(values, f"{name}.factor"))
            wrong = helper.make_node("Mul", [node.output[0], f"{name}.factor"], [name])
            model.graph.node.insert(list(model.graph.node).index(node) + 1, wrong)

    return change


def is_attention(node: onnx.NodeProto) -> bool:
    return node.op_type == "GroupQueryAttention"


def without_first_head(node: onnx.NodeProto) -> np.ndarray:
    heads, size = 8, 16
    return np.repeat(np.arange(heads) > 0, size)


def scaled(node: onnx.NodeProto) -> np.ndarray:
    return np.array([1.1])


FAULTS = {
    "an attention head that is dropped": multiply(is_attention, without_first_head),
    "one layer's attention head that is dropped": multiply(is_attention, without_first_head, which=slice(1, 2)),
    "an output times 1.1": multiply(lambda node: node.output[0] == "logits", scaled),
}
FINE_FAULTS = {"attention times 1.1": multiply(is_attention, scaled)}
"""Where activations are rounded to 8 bits, right kernels differ by as much."""


def plant(package: Path, folder: Path, change: Change) -> None:
    """Copy a package with another graph, as a provider would run it that computes wrongly."""
    shutil.copytree(package, folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / MANIFEST_NAME).unlink()  # whose sizes would tell


@pytest.mark.parametrize("target", list(targets()))
def test_planted_faults_are_refused_on_every_target(target: str, verified: Make, tmp_path: Path) -> None:
    package = verified(target)
    with load(package, provider="cpu", engine="onnxruntime"):
        pass
    faults = list(FAULTS.values())
    if (self_test := read_self_test(package, 512)) and self_test.drift.mean < 0.01:
        faults += FINE_FAULTS.values()
    for number, change in enumerate(faults):
        plant(package, tmp_path / f"{number}", change)
        with pytest.raises(SelfTestError, match=r"computed wrongly on cpu by onnxruntime .* nats from where"):
            load(tmp_path / f"{number}", provider="cpu", engine="onnxruntime")


def test_the_file_is_one_of_the_package(verified: Make, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(verified("cpu-int4-rtn"), folder)
    manifest = read_manifest(folder)
    assert manifest.verified
    assert manifest.verification is not None
    assert "self_test" not in manifest.verification
    check_files(folder, manifest, hashes=True)
    assert 1000 < manifest.files[SELF_TEST_NAME].size < 10_000
    found = read_self_test(folder, 512)
    assert found is not None
    assert (len(found.texts), found.positions, found.provider) == (3, 30, "CPUExecutionProvider")
    assert 0.01 < found.expected.mean < found.expected.worst
    (folder / SELF_TEST_NAME).unlink()  # whoever wants none may take it away
    load(folder).close()
    with pytest.raises(PackageError, match=r"selftest\.json is missing"):
        check_files(folder, manifest, hashes=True)


def test_a_package_that_fails_gets_none(verified: Make, tiny: Make, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(verified("cpu-int4-rtn"), folder)
    before = (folder / SELF_TEST_NAME).read_bytes()
    target = targets()["cpu-int4-rtn"]
    strict = replace(target, thresholds=Thresholds(mean_kl=1e-9))
    found = verify(folder, open_checkpoint(tiny("gqa")), target=strict, steps=2)
    assert found.self_test is None
    assert found.warnings == ()
    record(folder, found)
    assert (folder / SELF_TEST_NAME).read_bytes() == before
    manifest = read_manifest(folder)
    check_files(folder, manifest, hashes=True)
    assert manifest.verified is False


def test_another_makers_package_gets_one_if_it_is_the_model(tiny: Make, tiny_package: Make, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(tiny_package("gqa", "cpu-int4-rtn"), folder)
    checkpoint = open_checkpoint(tiny("gqa"))
    wrong = tmp_path / "wrong"
    plant(folder, wrong, multiply(is_attention, lambda _: np.array([-10.0])))
    (folder / MANIFEST_NAME).unlink()
    found = verify(wrong, checkpoint, steps=2)
    assert found.passed
    assert found.self_test is None
    assert "no self-test was made" in found.warnings[-1]
    record(folder, verify(folder, checkpoint, steps=2))
    assert not (folder / MANIFEST_NAME).exists()
    lines = list[str]()
    with load(folder, notify=lines.append):
        assert "self-test on cpu" in lines[0]


def test_a_disk_that_is_full_leaves_a_package_that_is_whole(
    verified: Make, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(verified("cpu-int4-rtn"), folder)
    found = verify(folder, open_checkpoint(tiny("gqa")), steps=2)
    real = Path.write_text

    def full(self: Path, *arguments: Any, **named: Any) -> int:
        if SELF_TEST_NAME in self.name:
            raise OSError(28, "No space left on device")
        return real(self, *arguments, **named)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match=r"cannot be written: No space left on device; .*--no-record"):
        record(folder, found)
    check_files(folder, read_manifest(folder), hashes=True)
    assert [path.name for path in folder.iterdir() if path.name.endswith(".part")] == []
