"""Prints the kernels of an execution provider as JSON: python dump_kernels.py CUDAExecutionProvider.

Needs nothing but the onnxruntime of this Python. On a machine without CUDA, `tests/cuda/run --tables` runs it on the
CUDA that is not there. What comes out is a file of export/lint/kernels/:

- `provider`, `onnxruntime`: whose kernels, of which version.
- `kernels`: `domain::operator` -> list of [first version, last version or null, alternatives]. The versions are of the
  operator's definitions that the kernel implements. An alternative is a type parameter or argument -> its types.
- `operators`: the definitions of ONNX Runtime's own operators that the provider has kernels for: [name, type parameter
  or type, whether it may be left out] of each input and output, and attributes -> whether they must be there.
"""

import json
import sys
from collections.abc import Iterable
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore[reportAttributeAccessIssue]

_DOMAINS = ("", "com.microsoft")
_NO_LAST = 2**31 - 1
_SINGLE = "Single"

Alternative = dict[str, tuple[str, ...]]


def table(provider: str) -> dict[str, Any]:
    """Return the content of a provider's file."""
    kernels: dict[str, dict[tuple[int, int], list[Alternative]]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.provider == provider and kernel.domain in _DOMAINS:
            types = {name: tuple(sorted(map(_short, allowed))) for name, allowed in kernel.type_constraints.items()}
            versions = kernels.setdefault(f"{kernel.domain}::{kernel.op_name}", {})
            versions.setdefault(tuple(kernel.version_range), []).append(types)
    if not kernels:
        raise SystemExit(f"onnxruntime {onnxruntime.__version__} has no kernels of {provider}")
    return {
        "provider": provider,
        "onnxruntime": onnxruntime.__version__,
        "kernels": {
            op: [
                [first, None if last == _NO_LAST else last, merged(alternatives)]
                for (first, last), alternatives in sorted(versions.items())
            ]
            for op, versions in sorted(kernels.items())
        },
        "operators": operators(kernels),
    }


def merged(alternatives: Iterable[Alternative]) -> list[Alternative]:
    """Join alternatives that differ in the types of one parameter, until none do. Allows just what all did before."""
    left: list[Alternative] = []
    for alternative in alternatives:
        joined = alternative
        while (other := next((one for one in left if _join(one, joined) is not None), None)) is not None:
            left.remove(other)
            joined = _join(other, joined) or joined
        left.append(joined)
    return sorted(left, key=lambda types: json.dumps(types, sort_keys=True))


def _join(one: Alternative, other: Alternative) -> Alternative | None:
    if one.keys() != other.keys():
        return None
    different = [name for name in one if one[name] != other[name]]
    if len(different) > 1:
        return None
    return {**one, **{name: tuple(sorted({*one[name], *other[name]})) for name in different}}


def operators(kernels: Iterable[str]) -> dict[str, Any]:
    """Return the definitions of ONNX Runtime's own operators among those that are named as kernels are."""
    wanted = set(kernels)
    # ONNX's own definitions of several versions are in the package `onnx`; those here have one version each.
    found: dict[str, list[Any]] = {}
    for schema in state.get_all_operator_schema():
        if (name := f"{schema.domain}::{schema.name}") in wanted:
            found.setdefault(name, []).append(schema)
    return {
        name: {
            "inputs": [_argument(argument) for argument in schemas[0].inputs],
            "outputs": [_argument(argument) for argument in schemas[0].outputs],
            "attributes": {key: bool(value.required) for key, value in sorted(schemas[0].attributes.items())},
        }
        for name, schemas in sorted(found.items())
        if name.startswith("com.microsoft::") or (len(schemas) == 1 and "/contrib_ops/" in schemas[0].file)
    }


def _argument(argument: Any) -> list[Any]:
    return [argument.name, _short(argument.typeStr), str(argument.option).rpartition(".")[2] != _SINGLE]


def _short(kind: str) -> str:
    return kind.removeprefix("tensor(").removesuffix(")") if kind.startswith("tensor(") else kind


def spelled(content: dict[str, Any]) -> str:
    """Return a file's text, an operator a line."""
    lines = []
    for key, value in content.items():
        if isinstance(value, dict):
            entries = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
            lines.append(f"{json.dumps(key)}: {{\n{entries}\n}}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}"


if __name__ == "__main__":
    print(spelled(table(*sys.argv[1:])))
