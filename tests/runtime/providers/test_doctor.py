"""What the doctor finds wrong, in what it is shown."""

import json
import sys
from pathlib import Path

import pytest
from nvml import Nvml
from phi3_onnx.configs import UsageError
from phi3_onnx.runtime.providers import devices, doctor
from phi3_onnx.runtime.providers.choice import ProviderChoice, Wheel
from phi3_onnx.runtime.providers.devices import Device, cuda_device, read_video_controllers
from phi3_onnx.runtime.providers.doctor import provider_problems, wheel_problems
from phi3_onnx.runtime.providers.trial import ProviderTrial
from scripted import scripted_model, write_scripted_package

ORT = Wheel("onnxruntime", "1.32.0", "onnxruntime")
ORT_GPU = Wheel("onnxruntime-gpu", "1.32.0", "onnxruntime")
GENAI = Wheel("onnxruntime-genai", "0.18.0", "onnxruntime_genai")
GPU = Device("nvidia", 0, "NVIDIA RTX 4090", "570.1", 24 * 2**30)
CPU_RUNS = ProviderTrial("cpu", True, "")
NO_CUDA = ProviderTrial("cuda", False, "built without it")


def test_clashing_wheels_are_an_error_with_the_command_that_mends_it() -> None:
    (problem,) = wheel_problems([ORT, ORT_GPU, GENAI])
    assert problem.severity == "error"
    assert "onnxruntime 1.32.0 and onnxruntime-gpu 1.32.0 overwrite each other" in problem.what
    assert problem.remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu onnxruntime-genai && pip install ")


def test_missing_wheels_are_errors() -> None:
    assert [problem.severity for problem in wheel_problems([])] == ["error", "error"]
    assert "GenAI" in wheel_problems([ORT])[0].what
    assert wheel_problems([ORT, GENAI]) == []


def test_a_gpu_that_nothing_uses_is_a_warning() -> None:
    assert provider_problems([CPU_RUNS, NO_CUDA], []) == []
    (problem,) = provider_problems([CPU_RUNS, NO_CUDA], [GPU])
    assert problem.severity == "warning" and problem.what.startswith("NVIDIA RTX 4090 is there")
    assert provider_problems([CPU_RUNS, ProviderTrial("cuda", True, "")], [GPU]) == []


def test_a_cpu_that_does_not_run_is_an_error() -> None:
    (problem,) = provider_problems([ProviderTrial("cpu", False, "broken")], [])
    assert problem.severity == "error" and "broken" in problem.what


RTX, H100 = "NVIDIA GeForce RTX 4090", "NVIDIA H100"
ONE_KIND = [Device("nvidia", number, RTX, free=free) for number, free in enumerate((7, 8, 9))]
TWO_KINDS = [Device("nvidia", 0, RTX, free=7), Device("nvidia", 1, H100, free=8)]


@pytest.mark.parametrize(
    ("found", "number", "environment", "free"),
    [
        (ONE_KIND, 0, {}, 7),
        (ONE_KIND, 2, {}, 9),
        (ONE_KIND, 3, {}, None),
        (ONE_KIND, 1, {"CUDA_VISIBLE_DEVICES": "2, 0"}, 7),
        (ONE_KIND, 0, {"CUDA_VISIBLE_DEVICES": ""}, None),
        (ONE_KIND, 0, {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, None),
        (TWO_KINDS, 0, {}, None),  # CUDA puts the faster one first, nvidia-smi goes by the bus
        (TWO_KINDS, 1, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 8),
        ([], 0, {}, None),
    ],
)
def test_the_gpu_that_cuda_means(
    found: list[Device], number: int, environment: dict[str, str], free: int | None
) -> None:
    device = cuda_device(found, number, environment)
    assert (device.free if device else None) == free


def test_a_kv_cache_that_the_gpu_has_no_room_for_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml([("NVIDIA H100", (80 << 30, 1 << 20), (9, 0))]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    write_scripted_package(tmp_path / "pkg")
    model = scripted_model(tmp_path / "pkg", ["yes"])
    model.choice = ProviderChoice("cuda", ())
    assert model.free_memory() == 2**20
    with pytest.raises(UsageError, match=r"the KV cache of 3008 tokens takes .* and 1\.0 MiB of memory are free"):
        model.generate("Hi", max_tokens=3000)
    assert model.generate("Hi", max_tokens=50).text == "yes"
    model.choice = ProviderChoice("dml", ())  # nobody here knows what DirectML has
    assert model.free_memory() is None


def test_reads_the_video_controllers_of_windows() -> None:
    one = {"Name": "AMD Radeon 780M", "DriverVersion": "31.0.22000"}
    assert read_video_controllers(json.dumps(one)) == [Device("gpu", 0, "AMD Radeon 780M", "31.0.22000")]
    assert len(read_video_controllers(json.dumps([one, one]))) == 2
    assert read_video_controllers("") == read_video_controllers("nonsense") == []


def test_reads_the_cards_of_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, vendor in (("card0", "0x1002"), ("card0-HDMI-A-1", "0x1002"), ("card1", "0x1234")):
        (tmp_path / name / "device").mkdir(parents=True)
        (tmp_path / name / "device/vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "device/device").write_text("0x15bf\n")
    monkeypatch.setattr(devices, "_DRM", tmp_path)
    monkeypatch.setattr(devices, "_nvidia", list)
    monkeypatch.setattr(devices.sys, "platform", "linux")
    assert [device.name for device in devices.list_devices()[1:]] == ["AMD GPU (0x15bf)"]


def test_a_report_is_json_and_keeps_secrets(monkeypatch: pytest.MonkeyPatch, isolated: Path) -> None:
    monkeypatch.setenv("PHI3_ONNX_SERVE_API_KEY", "hush")
    monkeypatch.setenv("PHI3_ONNX_THREADS", "3")
    report = doctor.examine()
    text = json.dumps(report.as_json())
    assert "hush" not in text and report.variables["PHI3_ONNX_SERVE_API_KEY"] == "(set)"
    assert report.threads == 3
    assert report.store.path == str(isolated / "packages") and report.stored_packages == ()
    assert report.healthy and not report.telemetry
    assert {result.provider for result in report.providers} >= {"cpu", "cuda", "dml"}


def test_telemetry_is_reported_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHI3_ONNX_TELEMETRY", "1")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    assert doctor.examine().telemetry


def test_little_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LITTLE_DISK", 2**62)
    report = doctor.examine()
    assert report.healthy
    assert [problem.remedy for problem in report.problems] == ["free some, or set PHI3_ONNX_HOME"]
