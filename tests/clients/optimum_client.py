"""Optimum's ORTModelForCausalLM with transformers' own `generate`: `python optimum_client.py TASK RESULT`."""

# This runs in an environment of its own.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from optimum.onnxruntime import ORTModelForCausalLM


def main(task_folder: Path, result: Path) -> None:
    task = json.loads((task_folder / "task.json").read_text(encoding="utf-8"))
    model = ORTModelForCausalLM.from_pretrained(task_folder / "package", file_name="model.onnx", use_io_binding=False)
    tokens, logits = [], []
    for prompt in task["prompts"]:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        answer = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=task["steps"], do_sample=False, pad_token_id=0
        )
        tokens.append(answer[0, len(prompt) :].tolist())
        logits.append(model(input_ids=ids, attention_mask=mask).logits[0, -task["positions"] :].detach().numpy())
    np.concatenate(logits).astype(np.float32).tofile(result / "logits.f32")
    versions = f"optimum-onnx {version('optimum-onnx')}, transformers {version('transformers')}"
    (result / "result.json").write_text(json.dumps({"version": versions, "tokens": tokens}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
