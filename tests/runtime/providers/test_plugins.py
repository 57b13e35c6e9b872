"""Execution providers in plug-in libraries, shown with two whose wheels install on any x86-64 Linux."""

import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from phi3_onnx.configs import UsageError
from phi3_onnx.configs.extras import LIBRARIES_VARIABLE
from phi3_onnx.runtime import load
from phi3_onnx.runtime.providers import plugins
from phi3_onnx.runtime.providers.plugins import Library, add_library, find, libraries, parse_library
from phi3_onnx.runtime.providers.trial import try_provider

# One that runs on any CPU, and one that needs a GPU with Vulkan.
_CPU_WHEEL, _GPU_WHEEL = "nxrt-ep-cpu==0.1.0.dev6", "onnxruntime-ep-webgpu==0.4.0"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "libplugin.so"
    path.write_bytes(b"no library")
    return path


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARIES_VARIABLE, "")


class TestNames:
    def test_a_library_is_a_name_and_a_path(self, file: Path) -> None:
        assert parse_library(f"WebGPU={file}") == Library("webgpu", file)

    @pytest.mark.parametrize("text", ["webgpu", "=lib.so", "webgpu=", ""])
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="is named as NAME=PATH, got"):
            parse_library(text)

    def test_a_file_that_is_not_there(self) -> None:
        with pytest.raises(UsageError, match=r"the provider library webgpu is not there: .*nowhere\.so"):
            parse_library("webgpu=/nowhere.so")

    def test_the_names_of_the_wheels_own_providers_are_taken(self, file: Path) -> None:
        with pytest.raises(UsageError, match="cannot be called cuda"):
            parse_library(f"CUDA={file}")

    def test_the_variable_holds_several_and_the_option_adds_to_it(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert libraries() == ()
        monkeypatch.setenv(LIBRARIES_VARIABLE, f"one={file}{os.pathsep}two={file}")
        add_library(f"three={file}")
        add_library(f"one={file}")
        assert [library.name for library in libraries()] == ["two", "three", "one"]
        assert find("Three") == Library("three", file) and find("four") is None


def command_line(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "phi3_onnx.cli", *map(str, arguments)]
    environment = {**os.environ, **variables, "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


def test_a_file_that_is_no_library_is_one_line(tiny_package: Callable[..., Path], file: Path) -> None:
    options = ("-p", "Hi", "--provider", "mine", "--provider-library", f"mine={file}")
    done = command_line("generate", tiny_package("gqa"), *options)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"phi3-onnx: the provider library mine ({file}) does not load in onnxruntime")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("brought", "advice"), [(True, ", or take --engine ort"), (False, "")])
def test_genai_refuses_a_number_that_would_have_no_effect(
    tiny_package: Callable[..., Path], file: Path, monkeypatch: pytest.MonkeyPatch, brought: bool, advice: str
) -> None:
    brings = {Library("mine", file): ("OpenVINOExecutionProvider",)} if brought else {}
    monkeypatch.setattr(plugins, "_providers", brings)
    with pytest.raises(UsageError) as caught:
        load(tiny_package("gqa"), provider="openvino", device=0, engine="genai")
    assert str(caught.value) == (
        f"ONNX Runtime GenAI takes --device for cuda and dml, not for OpenVINO; leave --device out{advice}"
    )


def fetched(requirement: str, member: str, folder: Path) -> Path:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the library is for x86-64 Linux")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"no registry: {done.stderr.splitlines()[-1]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(member, folder))


@pytest.mark.registry
class TestLibraries:
    def test_one_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = fetched(_CPU_WHEEL, "nxrt_ep_cpu/libonnx_runtime_ep_cpu_plugin.so", tmp_path)
        monkeypatch.setenv(LIBRARIES_VARIABLE, f"nxrt={path}")
        for name in ("nxrt", "cpu_ep"):  # the library's name, and that of the provider in it
            trial = try_provider(name)
            assert trial.runs, trial.reason

    def test_one_that_fails_in_the_graph_is_refused(self, tmp_path: Path, tiny_package: Callable[..., Path]) -> None:
        path = fetched(_CPU_WHEEL, "nxrt_ep_cpu/libonnx_runtime_ep_cpu_plugin.so", tmp_path)
        options = ("-p", "Hi", "-n", 2, "--provider", "nxrt", "--provider-library", f"nxrt={path}")
        done = command_line("generate", tiny_package("gqa"), *options)
        assert (done.returncode, done.stdout) == (3, "")
        assert "phi3-onnx: provider cpu_ep cannot run here: " in done.stderr

    def test_one_without_a_device_is_refused(self, tmp_path: Path, tiny_package: Callable[..., Path]) -> None:
        path = fetched(_GPU_WHEEL, "onnxruntime_ep_webgpu/libonnxruntime_providers_webgpu.so", tmp_path)
        if try_provider("WebGPU").runs:
            pytest.skip("this machine has what it needs")
        variables = {LIBRARIES_VARIABLE: f"webgpu={path}"}
        done = command_line("generate", tiny_package("gqa"), "-p", "Hi", "--provider", "webgpu", **variables)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr == (
            f"phi3-onnx: the provider library webgpu ({path}) is registered and finds no device here: its hardware or "
            "its driver is missing; take another --provider\n"
        )
        doctor = command_line("doctor", **variables)
        assert f"warning: the provider library webgpu ({path}) is registered and finds no device" in doctor.stdout
