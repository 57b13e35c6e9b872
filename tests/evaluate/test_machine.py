"""What the machine gives: energy from its counters, plain reads, and the bytes that a token reads."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from phi3_onnx.evaluate import machine
from phi3_onnx.evaluate.bytes_read import weights_read
from phi3_onnx.evaluate.machine import EnergyMeter, peak_memory, read_bandwidth
from phi3_onnx.runtime import load
from phi3_onnx.runtime.package import open_package

from tests.doubles.nvml import RTX, Nvml


def counter(folder: Path, name: str, microjoules: int, most: int = 1_000_000_000) -> Path:
    folder.mkdir()
    for file, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{value}\n")
    return folder / "energy_uj"


def test_energy_is_that_of_the_processors_and_counts_past_the_end_of_a_counter(tmp_path: Path) -> None:
    first = counter(tmp_path / "intel-rapl:0", "package-0", 999_000_000)
    second = counter(tmp_path / "intel-rapl:1", "package-1", 5_000_000)
    counter(tmp_path / "intel-rapl:0:0", "core", 1)
    counter(tmp_path / "intel-rapl-mmio:0", "package-0", 1)
    counter(tmp_path / "intel-rapl:2", "psys", 1)
    (tmp_path / "intel-rapl:3").mkdir()  # one that may not be read

    def work() -> None:
        first.write_text("1000000\n")
        second.write_text("8500000\n")

    meter = EnergyMeter("cpu", powercap=tmp_path)
    assert meter.source == "RAPL package-0, RAPL package-1"
    assert meter.joules(work) == pytest.approx(2.0 + 3.5)


def test_without_a_counter_work_is_done_all_the_same(tmp_path: Path) -> None:
    done = list[int]()
    meter = EnergyMeter("cpu", powercap=tmp_path)
    assert (meter.source, meter.joules(lambda: done.append(1)), done) == ("", None, [1])


def test_a_gpu_counts_where_it_runs_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter((70_000, 70_000, 71_500))
    nvml = Nvml([RTX])
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: next(counts)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(machine, "import_module", lambda name: nvml)
    meter = EnergyMeter("cuda", 0, tmp_path)
    assert meter.source == "NVML NVIDIA GeForce RTX 4090"
    assert meter.joules(lambda: None) == pytest.approx(1.5)
    assert EnergyMeter("cpu", 0, tmp_path).source == ""


def test_memory_is_read_and_counted() -> None:
    assert read_bandwidth(2) > 0
    assert peak_memory() > 10 << 20


@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_an_embedding_of_its_own_is_not_read(kind: str, tiny_package: Callable[..., Path]) -> None:
    package = open_package(tiny_package(kind))
    config = json.loads((package.folder / "config.json").read_text())
    data = sum(path.stat().st_size for path in package.folder.glob("*.data"))
    embedding = config["vocab_size"] * config["hidden_size"] * 4
    with load(package.folder) as model:
        found = weights_read(model)
    assert found == data - (0 if kind == "tied" else embedding)
