"""What is tried on the Windows machine: packages of small models, their operators, and what Linux makes of them."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from machine import HERE, CannotPrepareError, say

sys.path.insert(0, str(HERE.parent))
from conftest import tiny_tokenizer, write_tiny, write_tokenizer

TARGET = "dml-int4-awq"
PROMPT = (11, 402, 33, 204, 75, 306, 17, 118, 289, 40, 161, 92, 450)
"""Token ids below 512, the cut vocabulary."""
_PHI3: Mapping[str, Any] = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}

_RAGGED: Mapping[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}


@dataclass(frozen=True)
class Case:
    """A model whose DirectML package is tried."""

    name: str
    kind: str
    """Of `write_tiny` in tests/conftest.py; `cut` is the small real model, and `small` that model whole."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What of its config.json differs from the kind's."""


CASES = (
    Case("cut", "cut"),
    Case("phi3-4k", "plain", {**_PHI3, "sliding_window": 2047}),
    Case("phi3-128k", "longrope", {**_PHI3, "max_position_embeddings": 131072}),
    # Sizes that are multiples of 128 and at least two blocks, so that a node that is refused is refused for its kind.
    Case("gqa", "gqa", {"hidden_size": 256, "intermediate_size": 512}),
    Case("window", "plain", {"hidden_size": 256, "intermediate_size": 512, "sliding_window": 8}),
    Case("partial", "partial", {"hidden_size": 256, "intermediate_size": 512}),
    Case("tied", "tied", {"hidden_size": 256, "intermediate_size": 512}),
    Case(
        "ragged",
        "gqa",
        {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3},
    ),
)
WHOLE = Case("small", "small")


def write_checkpoint(case: Case, folder: Path, cache: Path) -> Path:
    """Return the checkpoint of a case: a folder, or the small real model's GGUF file."""
    if case.kind in ("cut", "small"):
        from phi3_onnx.export.sources.small_model import fetch_small_model

        gguf = fetch_small_model(cache, notify=say)
        if case.kind == "small":
            return gguf
        cut_model(gguf, folder)
    else:
        write_tiny(folder, case.kind, **case.values)
    return folder


def cut_model(gguf: Path, folder: Path, *, layers: int = 2, vocabulary: int = 512) -> None:
    """Write the first layers and tokens of a model as a checkpoint, with a tokenizer of as many tokens."""
    from dataclasses import replace

    from phi3_onnx.export import open_checkpoint
    from safetensors.numpy import save_file

    whole = open_checkpoint(gguf)
    config = replace(
        whole.config, num_layers=layers, vocab_size=vocabulary, bos_token_id=0, eos_token_ids=(0,), pad_token_id=0
    )
    tensors = {name: whole.read(name, slice(0, shape[0])) for name, shape in config.tensor_shapes().items()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_phi3()), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}), encoding="utf-8")
    write_tokenizer(folder, tiny_tokenizer(vocabulary))


def export_case(case: Case, target: str, folder: Path, cache: Path) -> Path:
    """Export the package of a case to `<folder>/<case>-<target>`, and return that."""
    from phi3_onnx.configs import find_target, with_quantization
    from phi3_onnx.evaluate import checked
    from phi3_onnx.export import CalibrationOptions, export

    checkpoint = folder / "checkpoints" / case.name
    source = checkpoint if checkpoint.exists() else write_checkpoint(case, checkpoint, cache)
    package = folder / f"{case.name}-{target}"
    chosen = find_target(target)
    if case is not WHOLE and chosen.quantization is not None:
        # The graph is that of any method, and the arithmetic is looked at here, not the quality.
        chosen = with_quantization(chosen, method="rtn")
    # `doctor PACKAGE` replays what verification has found; the random models have no bounds worth their time.
    verify = checked if case.kind == "cut" else None
    return export(source, chosen, package, force=True, calibration=CalibrationOptions(num_samples=16), verify=verify)


def write_operators(package: Path, folder: Path) -> int:
    """Write a model of one node, its inputs and the CPU provider's outputs for each kind of node in a package.

    Two nodes are of one kind if operator, attributes, and the shapes and dtypes of their inputs agree. The inputs are
    those that the node gets when the whole graph runs `PROMPT`; constants are inside the model.

    Returns:
        How many were written: `<folder>/<number>-<operator>.onnx` and `.npz`.

    """
    import onnx
    import onnxruntime
    from phi3_onnx.runtime.engines.session import LogitsSession

    model = onnx.load(package / "model.onnx", load_external_data=True)
    graph, constants = model.graph, {value.name: value for value in model.graph.initializer}
    feeds = _feeds(LogitsSession(package))
    known = {output.name for output in graph.output}
    produced = [name for node in graph.node for name in node.output if name]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in produced if name not in known)
    whole = folder / "whole.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, whole, save_as_external_data=True, location="whole.data")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(whole, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    values = {**feeds, **dict(zip(names, session.run(names, feeds), strict=True))}
    for path in (whole, folder / "whole.data"):
        path.unlink()
    model = onnx.load(package / "model.onnx", load_external_data=True)  # saving has taken the constants out of it
    seen: set[str] = set()
    for node in graph.node:
        inputs = {name: values[name] for name in node.input if name in values}
        shapes = [tuple(constants[name].dims) for name in node.input if name in constants]
        kinds = [(value.shape, str(value.dtype)) for value in inputs.values()]
        signature = str((node.op_type, sorted(map(str, node.attribute)), shapes, kinds))
        if signature not in seen and inputs:
            _write_operator(onnx, model, node, inputs, values, folder / f"{len(seen):02}-{node.op_type}")
            seen.add(signature)
    return len(seen)


def _feeds(session: Any) -> dict[str, np.ndarray]:
    contract = session.contract
    empty = np.zeros((1, contract.num_kv_heads, 0, contract.head_dim), session.io_dtype)
    return {**session.feeds(np.array([PROMPT]), [0]), **dict.fromkeys(contract.past_names(), empty)}


def _write_operator(
    onnx: Any, model: Any, node: Any, inputs: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray], path: Path
) -> None:
    kind = onnx.helper.np_dtype_to_tensor_dtype

    def describe(name: str) -> Any:
        return onnx.helper.make_tensor_value_info(name, kind(values[name].dtype), values[name].shape)

    outputs = {name: values[name] for name in node.output if name}
    graph = onnx.helper.make_graph(
        [node],
        node.op_type,
        [describe(name) for name in inputs],
        [describe(name) for name in outputs],
        [value for value in model.graph.initializer if value.name in node.input],
    )
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.save(alone, path.with_suffix(".onnx"))
    stored: dict[str, Any] = {f"in:{name}": value for name, value in inputs.items()}
    stored |= {f"out:{name}": value for name, value in outputs.items()}
    np.savez(path.with_suffix(".npz"), **stored)


def linux_logits(package: Path, site: Path) -> np.ndarray:
    """Return a package's logits of `PROMPT` by the ONNX Runtime in the folder `site`, float32 [tokens, vocabulary]."""
    script = (
        "import sys, numpy as np\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from phi3_onnx.runtime.engines.session import LogitsSession\n"
        "session = LogitsSession(Path(sys.argv[2]), threads=1)\n"
        "np.save(sys.argv[3], np.concatenate([part for _, part in session.logits(np.array(eval(sys.argv[4])))]))\n"
    )
    result = package / "linux.npy"
    command = [sys.executable, "-c", script, str(site), str(package), str(result), str(PROMPT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotPrepareError(f"Linux cannot run {package.name}: {done.stderr.strip().splitlines()[-1]}")
    logits = np.load(result)
    result.unlink()
    return logits
