"""Environments with ONNX Runtime's and GenAI's CUDA wheels, and the libraries of a CUDA that is not there for them."""

import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from stand_in import HERE, build


class UnavailableError(Exception):
    """The dry run cannot be made on this machine; the message says why."""


@dataclass(frozen=True)
class Pair:
    """Two wheels that belong together, and the headers of the CUDA they were built with."""

    name: str
    onnxruntime: str
    genai: str
    headers: str
    """Requirement of the wheel that has `cuda_runtime_api.h`, a few megabytes."""
    captures: bool = True
    """Whether this GenAI captures CUDA graphs; 0.13 refuses to ("currently unsupported for CUDA")."""

    @property
    def requirements(self) -> tuple[str, ...]:
        """What pip installs, without dependencies: those would be gigabytes of CUDA."""
        return (f"onnxruntime-gpu=={self.onnxruntime}", f"onnxruntime-genai-cuda=={self.genai}", "numpy")


PAIRS = {
    pair.name: pair
    for pair in (
        Pair("cuda13", "1.31.1", "0.18.0", "nvidia-cuda-runtime==13.5.37"),
        Pair("cuda12", "1.24.4", "0.13.1", "nvidia-cuda-runtime-cu12==12.8.90", captures=False),
    )
}
"""The newest wheels, and the oldest that the extras allow, which are the last of GenAI for CUDA 12."""


@dataclass(frozen=True)
class Environment:
    """Wheels that are installed, and the libraries that stand in for CUDA's."""

    python: Path
    libraries: Path


def make_environment(pair: Pair, cache: Path) -> Environment:
    """Return the environment of a pair in the folder `cache`, made there the first time (about 700 MB).

    Raises:
        UnavailableError: a tool is missing, or pip cannot fetch the wheels.

    """
    for tool in ("gcc", "nm", "readelf"):
        if not shutil.which(tool):
            raise UnavailableError(f"{tool} is not installed; run: apt install gcc")
    if sys.platform != "linux":
        raise UnavailableError(f"the CUDA wheels of {sys.platform} are not made for this; run it on Linux")
    folder = cache / f"{pair.name}-python{sys.version_info.major}.{sys.version_info.minor}"
    python, headers, stamp = folder / "bin" / "python", folder / "headers", folder / "installed"
    wanted = "\n".join([*pair.requirements, pair.headers, ""])
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=False)
        _pip("--python", str(python), "install", "--no-deps", "--only-binary=:all:", *pair.requirements)
        # Beside the environment, not in it: ONNX Runtime would find the real libcudart that comes along.
        _pip("install", "--no-deps", "--only-binary=:all:", "--target", str(headers), pair.headers)
        stamp.write_text(wanted, encoding="utf-8")
    libraries = folder / "libraries"
    packages = next(folder.glob("lib/python*/site-packages"))
    importers = sorted((packages / "onnxruntime" / "capi").glob("libonnxruntime_providers_*.so"))
    importers += (packages / "onnxruntime_genai").glob("libonnxruntime-genai-cuda.so")
    header = next(headers.rglob("cuda_runtime_api.h"))
    sources = [HERE / "device.c", HERE / "stand_in.py"]
    built = libraries / "libdrycuda.so"
    if not built.is_file() or built.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        try:
            build(libraries, importers, header.parent)
        except RuntimeError as error:
            raise UnavailableError(str(error)) from error
    return Environment(python, libraries)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise UnavailableError(f"pip cannot fetch the CUDA wheels: {errors[-1] if errors else 'no reason given'}")
