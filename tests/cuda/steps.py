"""Loads a package in ONNX Runtime GenAI, steps and rewinds: python steps.py PACKAGE [--capture].

Prints JSON: the device, and GenAI's version. Run by dry_run.py, with the CUDA wheels. `--capture` asks for CUDA graphs.
"""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime_genai

og: Any = onnxruntime_genai  # its module says nothing of what is in it
PROMPT, STEPS = 8, 4
_CAPTURE = {"model": {"decoder": {"session_options": {"provider_options": [{"cuda": {"enable_cuda_graph": "1"}}]}}}}


def main(package: str, *flags: str) -> None:
    """Do what a chat does: a prompt, some tokens, back to the prompt, more of a prompt, a token."""
    config = og.Config(package)
    # No kernel runs, so the token of every step is 0, which must not end the text.
    config.overlay(json.dumps({"model": {"eos_token_id": 5}}))
    if "--capture" in flags:
        config.overlay(json.dumps(_CAPTURE))
    model = og.Model(config)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=PROMPT + STEPS + 4, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(np.arange(1, PROMPT + 1, dtype=np.int32))
    for _ in range(STEPS):
        if generator.is_done():
            raise SystemExit("the text ended too early")
        generator.generate_next_token()
    generator.rewind_to(PROMPT)
    generator.append_tokens(np.array([5, 6], dtype=np.int32))
    generator.generate_next_token()
    print(json.dumps({"version": og.__version__, "device": str(model.device_type)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
