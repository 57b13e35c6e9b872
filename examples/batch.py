"""Answer a file of prompts side by side: `python batch.py PACKAGE PROMPTS.jsonl > ANSWERS.jsonl`.

Each line holds a "prompt". `phi3-onnx generate PACKAGE --jsonl PROMPTS.jsonl` does the same with more options; this is
how it is done in a program.
"""

import json
import sys
from pathlib import Path

from phi3_onnx.runtime import load

lines = Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()
prompts = [json.loads(line)["prompt"] for line in lines if line.strip()]
with load(sys.argv[1], engine="onnxruntime") as model:  # one copy of the weights
    for prompt, response in zip(prompts, model.generate_many(prompts, batch=8, max_tokens=64), strict=True):
        print(json.dumps({"prompt": prompt, "answer": response.text, "tokens": response.completion_tokens}))
