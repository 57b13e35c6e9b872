"""What each extra of this project installs, and what it needs of the machine: the one table of that.

The list in docs/guides/install.md, the doctor's advice, error messages and tests derive from it; `pyproject.toml` is
held against it.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from .origin import install_command
from .releases import release

LIBRARIES_VARIABLE = "PHI3_ONNX_PROVIDER_LIBRARIES"
"""Plug-in libraries with execution providers, as `NAME=PATH`, separated as the folders in `PATH` are."""
ONNXRUNTIME, GENAI = "onnxruntime", "onnxruntime_genai"
"""The two modules that the wheels of ONNX Runtime install."""


@dataclass(frozen=True)
class Extra:
    """An extra that brings one build of ONNX Runtime and the GenAI library that belongs to it."""

    name: str
    provider: str
    """The execution provider it is for, by this project's name; `winml` takes plug-in libraries."""
    runtime: str
    """Its wheel of ONNX Runtime."""
    genai: str
    """Its wheel of ONNX Runtime GenAI."""
    about: str
    """What it is for, and what it needs, as docs/guides/install.md says it."""
    platforms: tuple[str, ...] = ("linux", "win32", "darwin")
    """Where its wheels exist, as `sys.platform` names systems."""
    cuda: int | None = None
    """The major version of CUDA that both wheels are linked to."""

    @property
    def wheels(self) -> frozenset[str]:
        """The distributions that make the extra what it is."""
        return frozenset((self.runtime, self.genai))


EXTRAS = (
    Extra("cpu", "cpu", "onnxruntime", "onnxruntime-genai", "run packages on the CPU"),
    Extra(
        "cuda",
        "cuda",
        "onnxruntime-gpu",
        "onnxruntime-genai-cuda",
        "on NVIDIA GPUs, CUDA 13: driver 580 or later",
        platforms=("linux", "win32"),
        cuda=13,
    ),
    Extra(
        "cuda12",
        "cuda",
        "onnxruntime-gpu",
        "onnxruntime-genai-cuda",
        "the last versions for CUDA 12: driver 525 or later (Windows: 528)",
        platforms=("linux", "win32"),
        cuda=12,
    ),
    Extra(
        "directml",
        "dml",
        "onnxruntime-directml",
        "onnxruntime-genai-directml",
        "on any DirectX 12 GPU of a Windows machine",
        platforms=("win32",),
    ),
    Extra(
        "winml",
        "winml",
        "onnxruntime-windowsml",
        "onnxruntime-genai-winml",
        "Windows ML: providers that Windows fetches, or a plug-in",
        platforms=("win32",),
    ),
)

ADDITIONS = {
    "export": "make packages too: torch, transformers, onnx",
    "server": "serve packages over HTTP",
    "hub": "fetch and publish packages on the Hugging Face hub",
    "sign": "sign packages, and check who signed one",
    "plot": "draw the errors of a verification",
    "otel": "send the server's traces and metrics by OpenTelemetry",
    "eval": "run the benchmarks of model cards",
    "optimum": "Optimum's ORTModelForCausalLM, in an environment of its own",
    "ray": "replicas and data sets on many machines, with Ray",
    "examples": "run all examples",
    "docs": "build the documentation",
    "test": "run the tests of this project",
}
"""The extras that go with one of the above, or need none, and what each is for."""

WHEELS: dict[str, tuple[str, ...]] = {
    ONNXRUNTIME: (
        "onnxruntime",
        "onnxruntime-gpu",
        "onnxruntime-directml",
        "onnxruntime-openvino",
        "onnxruntime-windowsml",
        "onnxruntime-migraphx",
        "onnxruntime-rocm",
        "onnxruntime-training",
    ),
    GENAI: (
        "onnxruntime-genai",
        "onnxruntime-genai-cuda",
        "onnxruntime-genai-directml",
        "onnxruntime-genai-winml",
        "onnxruntime-genai-rocm",
    ),
}
"""Every wheel that installs a module of that name.

Two with the same module name overwrite each other's files without a word (onnxruntime#26996).
"""

# Read in the dynamic sections of the Linux wheels: onnxruntime-gpu 1.26.0 and 1.31.1, onnxruntime-genai-cuda 0.13.1,
# 0.13.2, 0.14.1, 0.15.2, 0.16.0, 0.17.1 and 0.18.0. The first version of each wheel that is linked to CUDA 13:
_FIRST_WITH_CUDA_13 = {"onnxruntime-gpu": (1, 27), "onnxruntime-genai-cuda": (0, 15)}
_DRIVERS = {12: {"linux": 525, "win32": 528}, 13: {"linux": 580, "win32": 580}}


def extra(name: str) -> Extra:
    """Return the extra of this name.

    Raises:
        KeyError: none of those that bring ONNX Runtime is called so.

    """
    return {each.name: each for each in EXTRAS}[name]


def extra_for(provider: str) -> Extra | None:
    """Return the extra that a provider is to be installed with; None where this project has none for it."""
    return next((each for each in EXTRAS if each.provider == provider), None)


def all_extras() -> tuple[str, ...]:
    """Return the names of all extras."""
    return (*(each.name for each in EXTRAS), *ADDITIONS)


def cuda_of(wheel: str, version: str) -> int | None:
    """Return the major version of CUDA that a version of a wheel is linked to; None for a wheel without CUDA."""
    first = _FIRST_WITH_CUDA_13.get(wheel)
    if first is None:
        return None
    return 13 if release(version) >= first else 12


def least_driver(cuda: int, platform: str = sys.platform) -> int:
    """Return the first major version of NVIDIA's driver that runs a major version of CUDA.

    https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, and for Windows the release
    notes of the toolkit.
    """
    return _DRIVERS[cuda].get(platform, _DRIVERS[cuda]["linux"])


def cuda_library(cuda: int, platform: str = sys.platform) -> str:
    """Return the file name of CUDA's runtime library."""
    return f"cudart64_{cuda}.dll" if platform == "win32" else f"libcudart.so.{cuda}"


def with_extras(installed: Iterable[str], *names: str) -> str:
    """Return the command that adds extras to this environment, and never a second ONNX Runtime.

    Args:
        installed: the wheels of ONNX Runtime that are there.
        names: the extras; with no ONNX Runtime there, `cpu` goes with them.

    """
    wanted = names if set(installed) & set(WHEELS[ONNXRUNTIME]) else (*names, "cpu")
    return install_command(*wanted)
