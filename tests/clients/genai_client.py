"""ONNX Runtime GenAI by itself, as its own examples use it: `python genai_client.py TASK RESULT`."""

# This runs in an environment of its own.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai as og


def main(task_folder: Path, result: Path) -> None:
    task = json.loads((task_folder / "task.json").read_text(encoding="utf-8"))
    model = og.Model(str(task_folder / "package"))
    tokens, logits = [], []
    for prompt in task["prompts"]:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + task["steps"], do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(prompt, dtype=np.int32))
        logits.append(np.asarray(generator.get_output("logits"), dtype=np.float32)[0, -task["positions"] :])
        while not generator.is_done():
            generator.generate_next_token()
        tokens.append([int(token) for token in generator.get_sequence(0)[len(prompt) :]])
    np.concatenate(logits).tofile(result / "logits.f32")
    version = f"onnxruntime-genai {og.__version__}"
    (result / "result.json").write_text(json.dumps({"version": version, "tokens": tokens}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
