"""Whether the settings of a graph's attention and norms are the model's: heads, window, scale, epsilon."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...configs import ModelConfig, PackageError
from .finding import Finding

_NORMS = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")


def compare_attention(folder: Path, config: ModelConfig) -> Finding:
    """Compare the attributes of every attention and norm node of one of our packages with the model's configuration.

    Raises:
        PackageError: the graph cannot be read.

    """
    import onnx

    try:
        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    except Exception as error:  # protobuf's and onnx's own
        raise PackageError(f"{folder / 'model.onnx'} cannot be read: {error}; export the package again") from error
    attention = [_attributes(node) for node in graph.node if node.op_type == "GroupQueryAttention"]
    norms = [_attributes(node) for node in graph.node if node.op_type in _NORMS]
    differences = [*_counts(config, len(attention), len(norms))]
    for layer, found in enumerate(attention):
        differences += _differences(f"layer {layer}", found, _expected(config))
    for number, found in enumerate(norms):
        differences += _differences(f"norm {number}", found, {"epsilon": config.rms_norm_eps})
    notes = (f"{len(attention)} attention nodes, {len(norms)} norms",)
    return Finding(len(attention) + len(norms) + 2, tuple(differences), notes)


def _counts(config: ModelConfig, attention: int, norms: int) -> Iterator[str]:
    if attention != config.num_layers:
        yield f"the graph has {attention} GroupQueryAttention nodes, the model {config.num_layers} layers"
    if norms != 2 * config.num_layers + 1:
        yield f"the graph has {norms} norms, the model {2 * config.num_layers + 1}"


def _expected(config: ModelConfig) -> dict[str, float]:
    return {
        "num_heads": config.num_heads,
        "kv_num_heads": config.num_kv_heads,
        "local_window_size": config.sliding_window or -1,
        "scale": 1 / math.sqrt(config.head_dim),
    }


def _differences(place: str, found: dict[str, Any], expected: dict[str, float]) -> Iterator[str]:
    for name, wanted in expected.items():
        value = found.get(name)
        # Attributes are float32.
        if value is None or not math.isclose(value, wanted, rel_tol=1e-6):
            yield f"{place}: {name} is {value}, the model's {wanted:g}"


def _attributes(node: Any) -> dict[str, Any]:
    from onnx.helper import get_attribute_value

    return {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
