import os
import sys

import pytest
from phi3_onnx.runtime.providers import hardware


def test_threads_are_the_physical_cores_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv(hardware.THREADS_VARIABLE, raising=False)
    assert hardware.default_threads() == hardware.physical_cores() >= 1
    monkeypatch.setenv(hardware.THREADS_VARIABLE, "3")
    assert hardware.default_threads() == 3
    monkeypatch.setenv(hardware.THREADS_VARIABLE, "many")
    assert hardware.default_threads() == hardware.physical_cores()


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own files")
def test_two_threads_of_a_core_count_once_and_other_cpus_not_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "_CPUS", tmp_path)
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 5})
    for cpu, siblings in {0: "0,4", 1: "1,5", 2: "2,6", 4: "0,4", 5: "1,5"}.items():
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert hardware.physical_cores() == 2
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert hardware.physical_cores() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert hardware.physical_cores() == 2


def test_memory_is_what_the_container_has_left(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    free = hardware.available_memory()
    assert free > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    assert hardware.available_memory() == 100000
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 20000\nactive_file 5000\n")
    assert hardware.available_memory() == 125000
