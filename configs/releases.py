"""Versions of the packages this project uses: which work, which do not, and what to do about those.

`pyproject.toml` asks for the same lowest versions (tests/test_versions.py holds them together), but pip forgets that
as soon as another package is installed, and has no say in a version that did not exist yet.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from .errors import Phi3OnnxError


class VersionError(Phi3OnnxError):
    """A package is installed in a version that is known not to work, or that nobody can know yet."""


@dataclass(frozen=True)
class Range:
    """The versions of a package that this release works with."""

    lowest: str
    """The first version that works, and is safe."""
    below: str | None = None
    """The first version that nobody can know: the next major one. None where the package has no such habit."""
    reason: str = ""
    """Why it is not a lower one."""


RANGES = {
    "cryptography": Range("44.0.1", None, "CVE-2024-12797: the OpenSSL in its wheels"),
    "gguf": Range("0.17"),
    "httptools": Range("0.6"),
    "huggingface-hub": Range("0.34", "3"),
    "jinja2": Range("3.1.6", "4", "CVE-2025-27516: a template could leave its sandbox"),
    "loky": Range("3.5"),
    "numpy": Range("1.26", "3"),
    "onnx": Range("1.21", "2", "CVE-2026-27489: a model could read any file through a link"),
    "onnx-ir": Range("0.1.16", "2", "torch.onnx uses its schemas"),
    "onnxruntime": Range("1.24", "2"),
    "onnxruntime-directml": Range("1.24.4", "2"),
    "onnxruntime-genai": Range("0.13"),
    "onnxruntime-genai-cuda": Range("0.13.1"),
    "onnxruntime-genai-directml": Range("0.13.1"),
    "onnxruntime-genai-winml": Range("0.18"),
    "onnxruntime-gpu": Range("1.24.4", "2"),
    "onnxruntime-windowsml": Range("1.30", "2"),
    "onnxscript": Range("0.6", None, "it has what torch 2.11 and later ask for"),
    "prometheus-client": Range("0.20"),
    "pydantic": Range("2.8", "3", "before, each wrong entry of a list was an error of its own"),
    "starlette": Range("1.0.1", "2", "CVE-2026-48710: a Host header passes for another path"),
    "tokenizers": Range("0.21"),
    "torch": Range("2.9", "3"),
    # CVE-2026-1839 is in Trainer, with torch before 2.6; CVE-2026-4372 (4.56 to 5.2) in loading a model's weights by
    # `from_pretrained`. Nothing here does either: checkpoints are read by this project's own code.
    "transformers": Range("4.57.6", "6"),
    "uvicorn": Range("0.36"),
}
"""Each package that production code imports, and what it is known to work with."""

GROUPS = {
    "export": ("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "gguf", "huggingface-hub"),
    "server": ("starlette", "uvicorn", "pydantic", "prometheus-client"),
    "hub": ("huggingface-hub",),
    "sign": ("cryptography",),
    "run": ("numpy", "tokenizers", "jinja2"),
}
"""What is imported by verbs of one kind."""


def release(text: str) -> tuple[int, ...]:
    """Return the numbers a version begins with: (2, 13, 0) for `2.13.0+cpu` or `2.13.0rc1`."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, found.group().split("."))) if found else ()


def check_versions(packages: Iterable[str]) -> None:
    """Refuse versions of these packages that are known not to work; those that are missing are passed over.

    Nothing is imported for it.

    Raises:
        VersionError: a line for it, with the command that fixes it.

    """
    for name in packages:
        if problem := version_problem(name):
            what, fix = problem
            raise VersionError(f"{what}; {fix}")


def version_problem(name: str) -> tuple[str, str] | None:
    """Return what is wrong with the installed version of a package, and what fixes it; None where nothing is."""
    known = RANGES.get(name)
    try:
        found = version(name)
    except PackageNotFoundError:
        return None
    if known is None:
        return None
    fix = f'run: pip install "{name}>={known.lowest}{f",<{known.below}" if known.below else ""}"'
    if _padded(found) < _padded(known.lowest):
        reason = f" ({known.reason})" if known.reason else ""
        return f"{name} {found} is older than {known.lowest}, the first version that works here{reason}", fix
    if known.below and release(found)[:1] >= release(known.below)[:1]:
        return f"{name} {found} is newer than this release of phi3-onnx knows", fix
    return None


def _padded(text: str) -> tuple[int, ...]:
    numbers = release(text)
    return (*numbers, *(0,) * (6 - len(numbers)))
