"""What the doctor finds wrong, in what it is shown."""

import json
import sys
from pathlib import Path

import pytest
from nvml import Nvml
from phi3_onnx.configs import UsageError
from phi3_onnx.configs.extras import cuda_library
from phi3_onnx.configs.origin import install_command
from phi3_onnx.runtime.providers import devices, doctor
from phi3_onnx.runtime.providers.choice import ProviderChoice
from phi3_onnx.runtime.providers.devices import Device, cuda_device, read_video_controllers
from phi3_onnx.runtime.providers.doctor import cuda_problems, provider_problems, version_problems, wheel_problems
from phi3_onnx.runtime.providers.trial import ProviderTrial
from phi3_onnx.runtime.providers.wheels import Wheel
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
    with pytest.raises(UsageError, match=r"the KV cache of 3008 tokens takes .* and 1\.05 MB of memory are free"):
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


class TestCuda:
    """What the doctor says of the CUDA wheels, their driver and their libraries."""

    GPU_12, GPU_13 = (
        Wheel("onnxruntime-gpu", "1.26.0", "onnxruntime"),
        Wheel("onnxruntime-gpu", "1.31.1", "onnxruntime"),
    )
    GENAI_12 = Wheel("onnxruntime-genai-cuda", "0.14.1", "onnxruntime_genai")
    GENAI_13 = Wheel("onnxruntime-genai-cuda", "0.18.0", "onnxruntime_genai")

    def card(self, driver: str) -> Device:
        return Device("nvidia", 0, "NVIDIA H100", driver)

    def test_a_pair_that_fits(self) -> None:
        assert cuda_problems([self.GPU_13, self.GENAI_13], [self.card("580.65")], lambda _: True) == []
        assert cuda_problems([self.GPU_12, self.GENAI_12], [self.card("535.1")], lambda _: True) == []
        assert cuda_problems([ORT, GENAI], [self.card("535.1")], lambda _: False) == []

    @pytest.mark.parametrize(("driver", "extra"), [("580.65", "cuda"), ("550.54", "cuda12")])
    def test_a_pair_that_does_not(self, driver: str, extra: str) -> None:
        (problem,) = cuda_problems([self.GPU_12, self.GENAI_13], [self.card(driver)], lambda _: True)
        assert problem.what == (
            f"onnxruntime-genai-cuda 0.18.0 needs {cuda_library(13)} and onnxruntime-gpu 1.26.0 needs "
            f"{cuda_library(12)}: no CUDA has both"
        )
        uninstall = "pip uninstall -y onnxruntime-gpu onnxruntime-genai-cuda"
        assert problem.remedy == f"run: {uninstall} && {install_command(extra)}"

    def test_an_old_driver(self) -> None:
        (problem,) = cuda_problems([self.GPU_13, self.GENAI_13], [self.card("550.54")], lambda _: True)
        assert problem.what == "the NVIDIA driver 550 is too old for CUDA 13, which needs 580 or later"
        assert problem.remedy.startswith("update the driver, or run: ") and "[cuda12]" in problem.remedy
        (problem,) = cuda_problems([self.GPU_13, self.GENAI_13], [self.card("470.1")], lambda _: True)
        assert problem.remedy == "update the driver"

    def test_a_library_that_is_missing_is_named(self) -> None:
        (problem,) = cuda_problems([self.GPU_13, self.GENAI_13], [self.card("580.65")], lambda _: False)
        assert problem.what.startswith(f"{cuda_library(13)} is missing, which onnxruntime-gpu 1.31.1 and ")
        assert problem.remedy == 'run: pip install "onnxruntime-gpu[cuda,cudnn]==1.31.1"'

    def test_libraries_are_looked_for_where_nvidias_wheels_put_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        assert not doctor._loads("libnowhere.so.13")
        (tmp_path / "nvidia/cu13/lib").mkdir(parents=True)
        (tmp_path / "nvidia/cu13/lib/libnowhere.so.13").touch()
        assert doctor._loads("libnowhere.so.13")


def test_a_version_that_cannot_work_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "transformers-6.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 6.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (problem,) = version_problems(["transformers", "numpy"])
    assert problem.what == "transformers 6.1 is newer than this release of phi3-onnx knows"
