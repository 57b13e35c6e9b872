"""Loads a graph in plain ONNX Runtime and runs it: python place.py MODEL.onnx OPTIMIZED.onnx.

Prints JSON: the operator, name and provider of every node. Run by dry_run.py, with the CUDA wheels.
"""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime as ort

CUDA = "CUDAExecutionProvider"
PROMPT = 8
_DTYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(int64)": np.int64}


def main(model: str, optimized: str) -> None:
    """Load it, run a prompt and one more token, and print where the nodes lie."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # The graph as it is run, with the copies between providers: weights stay out of it.
    options.optimized_model_filepath = optimized
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
    options.log_severity_level = 3
    session: Any = ort.InferenceSession(model, options, providers=[CUDA])
    if session.get_providers()[0] != CUDA:
        raise SystemExit("CUDA did not start")
    for tokens, past in ((PROMPT, 0), (1, PROMPT)):
        feeds = {value.name: _input(value, tokens, past) for value in session.get_inputs()}
        logits = session.run(["logits"], feeds)[0]
        if logits.shape[:2] != (1, tokens):
            raise SystemExit(f"logits of {tokens} tokens have the shape {logits.shape}")
    nodes = [
        {"op": node.op_type, "name": node.name, "provider": part.ep_name}
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
    print(json.dumps({"version": ort.__version__, "nodes": nodes}))


def _input(value: Any, tokens: int, past: int) -> np.ndarray:
    sizes = {
        "batch_size": 1,
        "sequence_length": tokens,
        "past_sequence_length": past,
        "total_sequence_length": past + tokens,
    }
    shape: Any = [sizes.get(size, size) for size in value.shape]
    return np.full(shape, 0 if value.name.startswith("past") else 1, _DTYPES[value.type])


if __name__ == "__main__":
    main(*sys.argv[1:])
