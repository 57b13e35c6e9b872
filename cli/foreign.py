"""What can be said of a package that phi3-onnx did not make: of Microsoft's published folders and of the builder's."""

from collections import Counter
from pathlib import Path
from typing import Any

from ..configs.origin import install_command
from ..configs.sizes import size
from ..configs.target import describe_scheme


def describe(folder: Path) -> dict[str, Any]:
    """Return what `genai_config.json` and the graph say, as JSON values.

    Raises:
        PackageError: it is not a package, or its files are incomplete.

    """
    from ..runtime.package import open_package

    package = open_package(folder)
    contract = package.contract
    return {
        "package": str(folder),
        "made_by": None,
        "model_type": package.contract.model_type or None,
        "provider": package.made_for,
        "layers": contract.num_layers,
        "kv_heads": contract.num_kv_heads,
        "head_dim": contract.head_dim,
        "vocabulary": contract.vocab_size,
        "context": contract.context_length,
        "end_tokens": sorted(package.end_tokens),
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()},
        "graph": _graph(folder / contract.filename),
        "self_test": self_test_line(folder),
    }


def _graph(path: Path) -> dict[str, Any] | None:
    """Return operators and weight formats; None without the onnx package, which only those who export have."""
    try:
        import onnx
        from onnx.helper import get_attribute_value
    except ImportError:
        return None
    from ..configs import PackageError

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's and onnx's own
        raise PackageError(f"{path} cannot be read: {error}") from error
    formats: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            values = {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
            symmetric = not (len(node.input) > 3 and node.input[3])
            formats[describe_scheme(values.get("bits", 4), values.get("block_size", 0), symmetric)] += 1
    logits = next((value for value in model.graph.output if value.name == "logits"), None)
    if logits is None:
        raise PackageError(f"{path} cannot be read: it is not a graph that gives logits")
    return {
        "file": path.name,
        "opset": next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None),
        "producer": model.producer_name or None,
        "io_dtype": onnx.TensorProto.DataType.Name(logits.type.tensor_type.elem_type).lower(),
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "quantized": dict(formats.most_common()),
    }


def self_test_line(folder: Path) -> str:
    """Say which self-test a package carries.

    Raises:
        PackageError: it is damaged.

    """
    from ..runtime.package import read_contract
    from ..runtime.proof.self_test import read_self_test

    found = read_self_test(folder, read_contract(folder).vocab_size)
    return str(found) if found else "none; phi3-onnx verify makes one"


def rows(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return a description as names and texts."""
    graph = found["graph"]
    self_test = ("self-test", found["self_test"])
    table: list[tuple[str, Any]] = [
        ("package", found["package"]),
        ("made by", "not phi3-onnx: there is no phi3_onnx.json, so source and target are not known"),
        ("model", f"{found['model_type']}, {found['layers']} layers, {found['vocabulary']} tokens"),
        ("context", f"{found['context']} tokens"),
        ("provider", found["provider"]),
        ("ends with", ", ".join(map(str, found["end_tokens"]))),
        ("size", f"{size(sum(found['files'].values()))} in {len(found['files'])} files"),
    ]
    if graph is None:
        return [*table, self_test, ("graph", f"not read; for its operators run: {install_command('export')}")]
    formats = ", ".join(f"{count} x {kind}" for kind, count in graph["quantized"].items()) or graph["io_dtype"]
    operators = ", ".join(f"{count} {op}" for op, count in graph["operators"].items())
    return [
        *table,
        ("graph", f"{graph['file']}, opset {graph['opset']}, {graph['io_dtype']}, by {graph['producer']}"),
        ("matrices", formats),
        ("operators", operators),
        self_test,
        ("verified", "unknown; run: phi3-onnx verify PACKAGE --reference SOURCE"),
    ]
