"""What an installed runtime is known to compute wrongly without a word. A package that it concerns is refused there."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...configs import ProviderError
from .graph_file import GraphNode, read_nodes, sliding_window
from .imports import import_onnxruntime

Version = tuple[int, ...]


@dataclass(frozen=True)
class Fault:
    """One kernel of a provider in some versions of ONNX Runtime."""

    provider: str
    operator: str
    first: Version
    last: Version
    concerns: Callable[[GraphNode], bool]
    what: str
    remedy: str


_ZERO_POINTS = 3
_WITHOUT_WINDOWS = ("dml",)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "cuda",
        "GatherBlockQuantized",
        (1, 24, 4),
        (1, 28, 0),
        lambda node: node.integers.get("bits", 4) == 8 and not any(node.inputs[_ZERO_POINTS:]),
        "GatherBlockQuantized of 8 bits without zero points takes 0 for 128, so every token's embedding is wrong",
        'export the package again, or run: pip install "onnxruntime-gpu>=1.29"',
    ),
)


def refuse_known_faults(graph: Path, provider: str) -> None:
    """Refuse a graph that the installed ONNX Runtime computes wrongly on a provider.

    Args:
        graph: the ONNX file; read only where the version has a fault on this provider.
        provider: by this project's name.

    Raises:
        ProviderError: it does; with what is wrong, and what to do.
        PackageError: the file cannot be read.

    """
    here = [fault for fault in FAULTS if fault.provider == provider]
    version = import_onnxruntime().__version__ if here else ""
    here = [fault for fault in here if fault.first <= _numbers(version) <= fault.last]
    for node in read_nodes(graph) if here else ():
        for fault in here:
            if node.operator == fault.operator and fault.concerns(node):
                raise ProviderError(
                    f"{graph.parent} would be computed wrongly by onnxruntime {version} on {provider}: {fault.what}; "
                    f"{fault.remedy}"
                )


def unseen_window(graph: Path, provider: str) -> int | None:
    """Return the sliding window, in tokens, that a graph has and a provider's attention does not see; else None.

    DirectML's `GroupQueryAttention` reads no `local_window_size` (onnxruntime, `DmlOperatorGroupQueryAttention.cpp`): a
    token there attends to all before it. So a text that is longer than the window is computed as by another model.

    Args:
        graph: the ONNX file; read only where the provider is such a one.
        provider: by this project's name.

    Raises:
        PackageError: the file cannot be read.

    """
    if provider not in _WITHOUT_WINDOWS:
        return None
    return sliding_window(graph)


def _numbers(version: str) -> Version:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
