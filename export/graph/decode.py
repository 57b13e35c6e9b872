"""The second graph of a package: packed tokens and an int8 KV cache, on the weights of the first."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from ...configs import ModelConfig, OutputError
from ...configs.errors import first_line, is_out_of_memory
from .passes import Rewrite, run_passes
from .passes.edit import CONTRIB, nodes_of
from .passes.kv_cache import cache_scales, quantize_cache
from .passes.packed import pack_tokens, packable

DECODE_NAME = "decode.onnx"
_LOG = logging.getLogger(__name__)


def write_decode_graph(folder: Path, config: ModelConfig, samples: np.ndarray) -> bool:
    """Write `decode.onnx` beside the finished `model.onnx` of a folder; return whether that could be done.

    Args:
        folder: the package.
        config: the model.
        samples: token ids that show how large keys and values get, int64 [samples, tokens].

    Raises:
        OutputError: what was written cannot be read back.

    """
    model = ir.load(folder / "model.onnx")
    if not packable(model):
        return False
    trial = folder / "caches-only.onnx"
    try:
        _write_caches_only(model, trial)
        seen = _largest(trial, config, samples)
    except ImportError:
        _LOG.warning("onnxruntime is not installed, so the package gets no %s, which decodes together", DECODE_NAME)
        return False
    finally:
        trial.unlink(missing_ok=True)
    scales = [cache_scales(keys, values, config.rotary_dim) for keys, values in seen]
    run_passes(
        model, [Rewrite(pack_tokens), Rewrite(lambda graph: quantize_cache(graph, scales), name="quantize_cache")]
    )
    model.graph.name = "phi3 decode"
    (folder / DECODE_NAME).write_bytes(ir.to_proto(model).SerializeToString())
    return True


def _largest(path: Path, config: ModelConfig, samples: np.ndarray) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """Return the largest magnitudes of keys and values in each layer's cache, float32 [KV heads, head size] each."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Weights then stay in the mapped file, one matrix of floats at a time beside them: an export needs little memory.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common base but this
        if is_out_of_memory(error):
            raise
        raise OutputError(f"{path} cannot be read back: {first_line(error)}") from error
    names = [output.name for output in session.get_outputs()]
    empty = np.zeros((1, config.num_kv_heads, 0, config.head_dim), np.float32)
    largest = [np.zeros((config.num_kv_heads, config.head_dim), np.float32) for _ in names]
    for sample in samples:
        feeds = {name.replace("present", "past_key_values"): empty for name in names}
        feeds |= {"input_ids": sample[None], "attention_mask": np.ones((1, len(sample)), np.int64)}
        for seen, cache in zip(largest, cast("list[np.ndarray]", session.run(names, feeds)), strict=True):
            np.maximum(seen, np.abs(cache[0]).max(axis=1), out=seen)
    return list(zip(largest[::2], largest[1::2], strict=True))


def _write_caches_only(model: ir.Model, path: Path) -> None:
    """Write a copy of a graph without its head, in whichever arithmetic needs no prepared weights."""
    copy = ir.from_proto(ir.to_proto(model))
    copy.graph.outputs.pop(0)
    for node in nodes_of(copy, "MatMulNBits", CONTRIB):
        node.attributes.pop("accuracy_level", None)
    common.RemoveUnusedNodesPass()(copy)
    path.write_bytes(ir.to_proto(copy).SerializeToString())
