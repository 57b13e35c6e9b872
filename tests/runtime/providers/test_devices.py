"""NVIDIA's GPUs, by a stand-in for the module of their driver's library."""

import sys

import pytest
from nvml import GB10, RTX, Nvml
from phi3_onnx.runtime.providers.devices import Device, free_memory, list_devices


def nvidia() -> list[Device]:
    return [device for device in list_devices() if device.kind == "nvidia"]


def test_gpus_with_all_that_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml([RTX, GB10])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    first, second = nvidia()
    assert first == Device("nvidia", 0, RTX[0], "570.86.15", 24 << 30, 23 << 30, "8.9")
    assert second == Device("nvidia", 1, GB10[0], "570.86.15", None, None, "12.1")
    assert "cuda" in first.providers
    assert nvml.open == 0


def test_free_memory_is_that_of_the_gpu_that_cuda_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml([RTX]))
    assert free_memory("cuda") == 23 << 30
    assert free_memory("cuda", 1) is None


@pytest.mark.parametrize("nvml", [None, Nvml([RTX], driver=None), Nvml([RTX], lost=True), Nvml([])])
def test_without_module_driver_or_gpu_there_is_none(nvml: Nvml | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert nvidia() == []
    assert list_devices()[0].kind == "cpu"
    if nvml is not None:
        assert nvml.open == 0


def test_the_stand_in_has_the_modules_own_names() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name in vars(Nvml):
        if name.startswith(("nvml", "NVML")):
            assert hasattr(pynvml, name)
