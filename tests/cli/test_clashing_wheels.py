"""Every verb that runs a package says where ONNX Runtime wheels overwrite each other, once, and goes on."""

import io
import socket
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from phi3_onnx.configs.origin import install_command
from phi3_onnx.evaluate.parity import corpus

from .conftest import Run

Make = Callable[..., Path]


@pytest.fixture
def warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Make this environment look like one into which a second GenAI wheel came; return what is to be said of it."""
    name = "onnxruntime_genai_cuda-0.18.0"
    (tmp_path / f"{name}.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name.partition('-')[0].replace('_', '-')}\nVersion: 0.18.0\n"
    (tmp_path / f"{name}.dist-info/METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(str(tmp_path))
    return (
        f"warning: onnxruntime-genai {version('onnxruntime-genai')} and onnxruntime-genai-cuda 0.18.0 overwrite each "
        "other's module onnxruntime_genai, so the GPU's provider may be missing; run: pip uninstall -y onnxruntime "
        f"onnxruntime-genai onnxruntime-genai-cuda && {install_command('cpu')} (or [cuda], or [directml])"
    )


@pytest.fixture
def package(tiny_package: Make, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(corpus, "TOKENS", 300)
    return tiny_package("plain")


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "-p", "Hi", "-n", 2),
        ("bench", "--prompt", 8, "--decode", 2, "--repeat", 1),
        ("evaluate", "--no-reference"),
        ("verify", "--steps", 2, "--no-record"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_it_is_said_once(run: Run, warning: str, package: Path, arguments: tuple[object, ...]) -> None:
    verb, *options = arguments
    ran = run(verb, package, *options)
    assert ran.code == 0, ran.err
    assert [line for line in ran.err.splitlines() if "warning" in line] == [warning]
    assert ran.out and "warning" not in ran.out


@pytest.mark.parametrize("verb", ["chat", "generate"])
def test_it_is_not_said_with_quiet(
    run: Run, warning: str, package: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    options = ("-p", "Hi", "-n", 2) if verb == "generate" else ()
    ran = run("--quiet", verb, package, *options)
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize("verb", ["generate", "bench", "evaluate", "verify"])
def test_a_gpu_that_was_named_is_refused_with_the_same_cause(run: Run, warning: str, package: Path, verb: str) -> None:
    options = ("-p", "Hi") if verb == "generate" else ()
    ran = run(verb, package, *options, "--provider", "cuda")
    clash = warning.removeprefix("warning: ").partition(", so")[0]
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == (
        f"phi3-onnx: {clash}; run: pip uninstall -y onnxruntime onnxruntime-genai onnxruntime-genai-cuda && "
        f"{install_command('cuda')}\n"
    )


def test_chat_says_it(run: Run, warning: str, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    ran = run("chat", package)
    assert ran.code == 0
    assert ran.err.splitlines()[0] == warning and ran.err.count("warning") == 1


def test_serve_says_it_before_it_loads(run: Run, warning: str, package: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = run("serve", package, "--port", taken.getsockname()[1])
    assert ran.code == 2
    said, refused = ran.err.splitlines()
    assert said == warning and "is taken by another program" in refused


def test_matrix_says_it(run: Run, warning: str, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "TOKENS", 300)
    options = ("-t", "cpu-fp32", "--providers", "cpu,cuda", "--steps", 2, "--no-speed")
    ran = run("matrix", tiny("plain"), *options, "-o", tmp_path / "packages")
    assert ran.code == 0, ran.err
    assert [line for line in ran.err.splitlines() if "warning" in line] == [warning]
    outcomes = [line.split()[1:3] for line in ran.out.splitlines() if line.startswith("cpu-fp32 ")]
    assert outcomes == [["cpu", "pass"], ["cuda", "not"]]
