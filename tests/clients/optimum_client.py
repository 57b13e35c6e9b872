"""Optimum's ORTModelForCausalLM: `python optimum_client.py TASK RESULT`.

The sample of Phi-3's model card, with the model class changed, and transformers' own `generate` on token ids.
"""

# This runs in an environment of its own.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer, pipeline


def main(task_folder: Path, result: Path) -> None:
    task = json.loads((task_folder / "task.json").read_text(encoding="utf-8"))
    package = task_folder / "package"
    model = ORTModelForCausalLM.from_pretrained(package)
    tokenizer = AutoTokenizer.from_pretrained(package)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    card = pipe(task["messages"], **task["generation_args"])[0]["generated_text"]
    tokens, logits = [], []
    for prompt in task["prompts"]:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        answer = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=task["steps"], do_sample=False)
        tokens.append(answer[0, len(prompt) :].tolist())
        logits.append(model(input_ids=ids, attention_mask=mask).logits[0, -task["positions"] :].detach().numpy())
    np.concatenate(logits).astype(np.float32).tofile(result / "logits.f32")
    versions = f"optimum-onnx {version('optimum-onnx')}, transformers {version('transformers')}"
    found = {"version": versions, "tokens": tokens, "card": card}
    (result / "result.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
