"""Which kernels each execution provider has, from the files in `kernels/`: one for a provider and a version.

`tests/cuda/dump_kernels.py` makes such a file from ONNX Runtime's own registry, and says what is in it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

Alternative = Mapping[str, Sequence[str]]
"""The types that one kernel takes: type parameter, or argument -> names of types, such as `float16`."""


@dataclass(frozen=True)
class Argument:
    """An input or output in an operator's definition."""

    name: str
    kind: str
    """A type parameter such as `T`, or a type."""
    optional: bool
    """Whether it may be left out, or stand for any number of arguments."""


@dataclass(frozen=True)
class Operator:
    """An operator's definition, as far as a lint needs it."""

    inputs: Sequence[Argument]
    outputs: Sequence[Argument]
    attributes: Mapping[str, bool]
    """Name -> whether it must be there."""
    since: int = 1
    """The version of its domain in which this definition came."""


@dataclass(frozen=True)
class KernelTable:
    """The kernels of one provider in one version of ONNX Runtime."""

    provider: str
    """By ONNX Runtime's name, such as `CUDAExecutionProvider`."""
    onnxruntime: str
    kernels: Mapping[str, Sequence[tuple[int, int | None, Sequence[Alternative]]]]
    """`domain::operator` -> first version, last version (None: open), and what it takes."""
    operators: Mapping[str, Mapping[str, Any]]
    """Definitions of ONNX Runtime's own operators."""

    def __str__(self) -> str:
        return f"{self.provider} of ONNX Runtime {self.onnxruntime}"

    def operator(self, domain: str, name: str) -> Operator | None:
        """Return the definition of one of ONNX Runtime's own operators; None for ONNX's, and unknown ones."""
        entry = self.operators.get(f"{domain}::{name}")
        if entry is None:
            return None
        inputs, outputs = ([Argument(*argument) for argument in entry[key]] for key in ("inputs", "outputs"))
        return Operator(inputs, outputs, entry["attributes"])

    def alternatives(self, domain: str, name: str, since: int) -> list[Alternative] | None:
        """Return what the kernels take that implement this version of an operator; None where there is no such kernel.

        As in ONNX Runtime, a kernel whose last version is open implements its first version alone: what a later
        definition changes is not known to it.
        """
        found = [
            alternative
            for first, last, alternatives in self.kernels.get(f"{domain}::{name}", ())
            if since == first or (last is not None and first <= since <= last)
            for alternative in alternatives
        ]
        return found or None


@cache
def kernel_tables(provider: str) -> tuple[KernelTable, ...]:
    """Return the tables of a provider by this project's name, the oldest version first; none where there are none."""
    folder = files(__package__ or "phi3_onnx.export.lint") / "kernels"
    found = [
        KernelTable(**json.loads(entry.read_text(encoding="utf-8")))
        for entry in folder.iterdir()
        if entry.name.startswith(f"{provider}-") and entry.name.endswith(".json")
    ]
    return tuple(sorted(found, key=lambda table: [int(part) for part in table.onnxruntime.split(".")]))
