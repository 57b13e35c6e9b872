"""Writes the lint's table of WebGPU's kernels, as onnxruntime-web in headless Chromium has them.

    python tests/clients/webgpu_kernels.py [FOLDER]

Neither a browser nor a wheel lists these kernels, so each operator that a language model's graph may have is tried: a
model of that one node, for each type of its first type parameter, is loaded for WebGPU, and ONNX Runtime says where it
placed the node. Whether the software GPU could run it does not matter to that. Operators that are not in `OPERATORS`
are not in the table: add them there. Needs Chromium and npm; FOLDER (by default in ~/.cache) gets onnxruntime-web.
"""

import base64
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "cuda")]

from dump_kernels import (  # noqa: E402  # pyright: ignore[reportMissingImports]  # in the folder beside this one
    operators,
    spelled,
)
from web_client import visit  # noqa: E402  # beside this file
from webgpu import CLIENTS, WEBGPU, node_modules  # noqa: E402  # beside this file

OPSET = 21
"""Of the graphs that are exported."""
PROVIDER = "WebGpuExecutionProvider"
CONTRIB = "com.microsoft"
TYPES = {
    "float": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint32": TensorProto.UINT32,
    "bool": TensorProto.BOOL,
}
"""What is tried in the place of `T`."""
_FLOATS = ("float", "float16")
"""What an operator that has no kernel for it is named for: types that it does not take at all are no news."""
_VARIED = "T"
Argument = tuple[str, Sequence[int]] | np.ndarray
"""Type (a name, or `T` for the one that is varied) and shape of an input; or a constant."""
_ROWS = ("T", (1, 4, 32))


@dataclass(frozen=True)
class Operator:
    """One operator, with inputs that it takes."""

    name: str
    inputs: Sequence[Argument]
    outputs: Sequence[str] = (_VARIED,)
    """Their types."""
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _contrib(name: str, inputs: Sequence[Argument], outputs: int = 1, **attributes: Any) -> Operator:
    return Operator(name, inputs, (_VARIED,) * outputs, attributes, CONTRIB)


def _matmul_nbits(bits: int) -> Operator:
    packed = np.zeros((32, 1, 4 * bits), np.uint8)
    attributes = {"K": 32, "N": 32, "bits": bits, "block_size": 32}
    return _contrib("MatMulNBits", [_ROWS, packed, ("T", (32, 1))], **attributes)


_UNARY = (
    *("Abs", "Neg", "Exp", "Erf", "Sqrt", "Reciprocal", "Sigmoid", "Tanh", "Relu", "Sin", "Cos", "Floor", "Identity"),
    *("Gelu", "Softplus", "Log"),
)
_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "MatMul")
_COMPARED = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_REDUCED = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")
_SCALE, _CACHE = ("T", (32,)), ("T", (1, 1, 0, 16))
OPERATORS = (
    *(Operator(name, [_ROWS]) for name in _UNARY),
    *(Operator(name, [("T", (4, 4)), ("T", (4, 4))]) for name in _BINARY),
    *(Operator(name, [_ROWS, _ROWS], ["bool"]) for name in _COMPARED),
    *(Operator(name, [_ROWS, _ints(2)], attributes={"keepdims": 0}) for name in _REDUCED),
    Operator("Cast", [("float", (4,))], attributes={"to": _VARIED}),
    Operator("CumSum", [_ROWS, _ints(1)]),
    Operator("Concat", [_ROWS, _ROWS], attributes={"axis": 1}),
    Operator("Expand", [("T", (1, 1, 32)), _ints(1, 4, 32)]),
    Operator("Flatten", [_ROWS]),
    Operator("Gather", [("T", (8, 32)), ("int64", (1, 4))]),
    Operator("LayerNormalization", [_ROWS, _SCALE]),
    Operator("Range", [("T", ()), ("T", ()), ("T", ())]),
    Operator("Reshape", [_ROWS, _ints(4, 32)]),
    Operator("Shape", [_ROWS], ["int64"]),
    Operator("Slice", [_ROWS, _ints(0), _ints(2), _ints(1)]),
    Operator("Softmax", [_ROWS]),
    Operator("Split", [_ROWS, _ints(16, 16)], [_VARIED, _VARIED], {"axis": -1}),
    Operator("Squeeze", [_ROWS, _ints(0)]),
    Operator("Tile", [_ROWS, _ints(1, 2, 1)]),
    Operator("Transpose", [_ROWS], attributes={"perm": [0, 2, 1]}),
    Operator("Trilu", [("T", (4, 4))]),
    Operator("Unsqueeze", [_ROWS, _ints(0)]),
    Operator("Where", [("bool", (1, 4, 32)), _ROWS, _ROWS]),
    # ONNX Runtime keeps these two in ONNX's own domain.
    Operator("SimplifiedLayerNormalization", [_ROWS, _SCALE], attributes={"epsilon": 1e-5}),
    _contrib("SkipSimplifiedLayerNormalization", [_ROWS, _ROWS, _SCALE], epsilon=1e-5),
    _contrib("SkipLayerNormalization", [_ROWS, _ROWS, _SCALE], epsilon=1e-5),
    _contrib("QuickGelu", [_ROWS]),
    _contrib("BiasGelu", [_ROWS, _SCALE]),
    _contrib("FastGelu", [_ROWS]),
    _contrib("FusedMatMul", [("T", (4, 4)), ("T", (4, 4))]),
    _matmul_nbits(4),
    _contrib(
        "GatherBlockQuantized",
        [np.zeros((8, 16), np.uint8), ("int64", (1, 4)), ("T", (8, 1))],
        bits=4,
        block_size=32,
        gather_axis=0,
        quantize_axis=1,
    ),
    _contrib("RotaryEmbedding", [("T", (1, 2, 4, 16)), ("int64", (1, 4)), ("T", (8, 8)), ("T", (8, 8))], num_heads=2),
    _contrib(
        "GroupQueryAttention",
        [_ROWS, ("T", (1, 4, 16)), ("T", (1, 4, 16)), _CACHE, _CACHE, ("int32", (1, 1)), ("int32", (1,))],
        3,
        num_heads=2,
        kv_num_heads=1,
    ),
    _contrib("MultiHeadAttention", [_ROWS, _ROWS, _ROWS], num_heads=2),
)
"""What is tried."""


def model_of(operator: Operator, varied: str) -> onnx.ModelProto:
    """Return a model of one node, with a type in the place of `T`."""
    names, inputs, constants = [], [], []
    for index, argument in enumerate(operator.inputs):
        names.append(f"input_{index}")
        if isinstance(argument, np.ndarray):
            constants.append(onnx.numpy_helper.from_array(argument, names[-1]))
        else:
            kind, shape = argument
            inputs.append(helper.make_tensor_value_info(names[-1], TYPES[_settled(kind, varied)], shape))
    outputs = [f"output_{index}" for index in range(len(operator.outputs))]
    infos = [
        helper.make_tensor_value_info(name, TYPES[_settled(kind, varied)], None)
        for name, kind in zip(outputs, operator.outputs, strict=True)
    ]
    attributes: dict[str, Any] = {
        name: TYPES[varied] if value == _VARIED else value for name, value in operator.attributes.items()
    }
    node = helper.make_node(operator.name, names, outputs, name=operator.name, domain=operator.domain, **attributes)
    graph = helper.make_graph([node], operator.name, inputs, infos, constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _settled(kind: str, varied: str) -> str:
    return varied if kind == _VARIED else kind


def parameter_of(operator: Operator, definitions: dict[str, Any]) -> str:
    """Return the name of the type parameter that is varied."""
    places = [index for index, argument in enumerate(operator.inputs) if not isinstance(argument, np.ndarray)]
    varied = [index for index in places if operator.inputs[index][0] == _VARIED]
    key = f"{operator.domain}::{operator.name}"
    if key in definitions:
        arguments = [kind for _, kind, _ in definitions[key]["inputs"]]
        outputs = [kind for _, kind, _ in definitions[key]["outputs"]]
    else:
        schema: Any = onnx.defs.get_schema(operator.name, OPSET, operator.domain)
        arguments, outputs = ([one.type_str for one in part] for part in (schema.inputs, schema.outputs))
    return arguments[min(varied[0], len(arguments) - 1)] if varied else outputs[0]


def since(operator: Operator) -> int:
    """Return the version of an operator's definition."""
    if operator.domain or operator.name == "SimplifiedLayerNormalization":
        return 1
    return onnx.defs.get_schema(operator.name, OPSET, operator.domain).since_version


def tried() -> Iterator[tuple[Operator, str]]:
    """Yield each operator with each type."""
    for operator in OPERATORS:
        for kind in TYPES:
            yield operator, kind


def kernels(placed: Sequence[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the table's kernels, from where the nodes of `tried` landed."""
    found: dict[str, list[Any]] = {}
    for (operator, kind), places in zip(tried(), placed, strict=True):
        if places == [PROVIDER]:
            version = since(operator)
            entry = found.setdefault(
                f"{operator.domain}::{operator.name}",
                [[version, version, [{parameter_of(operator, definitions): []}]]],
            )
            next(iter(entry[0][2][0].values())).append(kind)
    return {name: found[name] for name in sorted(found)}


def main(work: Path) -> int:
    """Write the table."""
    modules = node_modules(work, CLIENTS["webgpu_client.html"])
    models = [base64.b64encode(model_of(*one).SerializeToString()).decode() for one in tried()]
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "models.json").write_text(json.dumps(models), encoding="utf-8")
        sent = visit("webgpu_kernels.html", modules, Path(name), flags=WEBGPU, seconds=600)
    if "/error" in sent:
        print(sent["/error"].decode(), file=sys.stderr)
        return 1
    answer = json.loads(sent["/result"])
    for (operator, kind), places in zip(tried(), answer["placed"], strict=True):
        if places != [PROVIDER] and kind in _FLOATS:
            print(f"{operator.name} {kind}: {' '.join(str(places).split())[:120]}", file=sys.stderr)
    definitions = operators(f"{operator.domain}::{operator.name}" for operator in OPERATORS)
    found = kernels(answer["placed"], definitions)
    content = {
        "provider": PROVIDER,
        "onnxruntime": answer["version"],
        "kernels": found,
        "operators": {name: entry for name, entry in definitions.items() if name in found},
    }
    path = HERE.parents[1] / "export" / "lint" / "kernels" / f"webgpu-{answer['version']}.json"
    path.write_text(spelled(content) + "\n", encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path.home() / ".cache/phi3-onnx-clients"))
