"""What was proven is kept for one package, engine, device and version, and a damaged record is none."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from phi3_onnx.configs.store import cache_folder
from phi3_onnx.runtime.proof import record
from phi3_onnx.runtime.proof.record import keep_proof, kept_proof, key_of, proofs_of
from phi3_onnx.runtime.providers import devices
from phi3_onnx.runtime.providers.wheels import Wheel


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name in ("model.onnx", "model.onnx.data", "phi3_onnx.json"):
        (tmp_path / name).write_text(name)
    return tmp_path


def files() -> list[Path]:
    return list((cache_folder() / "proofs").iterdir())


def test_a_proof_is_found_again(package: Path) -> None:
    key = key_of(package, "engine 1.0", "cpu", None)
    assert kept_proof(key) is None
    keep_proof(key, passed=True, verdict="close")
    found = kept_proof(key_of(package, "engine 1.0", "cpu", None))
    assert found is not None
    assert (found.passed, found.verdict) == (True, "close")
    assert [proof.key for proof in proofs_of(package)] == [key]
    assert len(files()) == 1


def test_whatever_changes_has_to_be_proven_again(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_proof(key_of(package, "engine 1.0", "cpu", None), passed=True, verdict="close")
    assert kept_proof(key_of(package, "engine 1.1", "cpu", None)) is None
    assert kept_proof(key_of(package, "engine 1.0", "Azure", None)) is None
    with monkeypatch.context() as patched:
        patched.setattr(record, "installed_wheels", lambda: [Wheel("onnxruntime", "9.9", "onnxruntime")])
        assert kept_proof(key_of(package, "engine 1.0", "cpu", None)) is None
    with monkeypatch.context() as patched:
        patched.setattr(devices, "_cpu_name", lambda: "another processor")
        assert kept_proof(key_of(package, "engine 1.0", "cpu", None)) is None
    manifest = package / "phi3_onnx.json"
    manifest.write_text("what verify wrote there")
    assert kept_proof(key_of(package, "engine 1.0", "cpu", None)) is not None
    data = package / "model.onnx.data"
    os.utime(data, ns=(1, 1))
    assert kept_proof(key_of(package, "engine 1.0", "cpu", None)) is None
    assert proofs_of(package) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"key": 1}', '{"key": {"package": "x"}}', "\x00"])
def test_a_damaged_record_is_none(content: str, package: Path) -> None:
    key = key_of(package, "engine 1.0", "cpu", None)
    keep_proof(key, passed=True, verdict="close")
    (file,) = files()
    file.write_text(content)
    assert kept_proof(key) is None
    assert proofs_of(package) == []
    keep_proof(key, passed=True, verdict="close")
    assert kept_proof(key) is not None


def test_a_record_of_something_else_in_its_place_is_none(package: Path) -> None:
    first, second = (key_of(package, f"engine {n}", "cpu", None) for n in (1, 2))
    keep_proof(first, passed=True, verdict="close")
    (file,) = files()
    text = file.read_text()
    keep_proof(second, passed=False, verdict="far")
    (other,) = (path for path in files() if path != file)
    other.write_text(text)
    assert kept_proof(second) is None


def test_a_cache_that_cannot_be_written_costs_a_replay_each_time(package: Path) -> None:
    cache_folder().parent.mkdir(parents=True, exist_ok=True)
    cache_folder().write_text("no folder")
    key = key_of(package, "engine 1.0", "cpu", None)
    keep_proof(key, passed=True, verdict="close")
    assert kept_proof(key) is None


def test_a_gpu_is_told_by_name_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def gpu(driver: str) -> list[devices.Device]:
        return [devices.Device("nvidia", 0, "NVIDIA H100", driver)]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(devices, "_nvidia", lambda: gpu("580.1"))
    first = devices.device_identity("cuda", 0)
    assert first == "0 of NVIDIA H100 driver 580.1 (CUDA_VISIBLE_DEVICES=0)"
    monkeypatch.setattr(devices, "_nvidia", lambda: gpu("590.2"))
    assert devices.device_identity("cuda", 0) != first


class Registry:
    """Windows' registry with two display adapters, of which the second has no driver."""

    HKEY_LOCAL_MACHINE = ""

    def OpenKey(self, key: Any, name: str) -> Any:  # noqa: N802  # as winreg calls it
        return type("Key", (), {"name": name, "__enter__": lambda key: key, "__exit__": lambda *_: None})()

    def QueryInfoKey(self, key: Any) -> tuple[int, int, int]:  # noqa: N802
        return 3, 0, 0

    def EnumKey(self, key: Any, index: int) -> str:  # noqa: N802
        return ("0000", "Configuration", "0001")[index]

    def QueryValueEx(self, key: Any, name: str) -> tuple[str, int]:  # noqa: N802
        if key.name == "0001":
            raise FileNotFoundError(name)
        return {"DriverDesc": "Radeon", "DriverVersion": "31.0"}[name], 1


def test_windows_adapters_come_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(devices, "import_module", lambda name: {"winreg": Registry()}[name])
    assert devices.device_identity("dml", 1) == "1 of Radeon driver 31.0"
