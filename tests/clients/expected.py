"""What our runtime gives: packages, prompts of some chats, greedy tokens, logits of the prompts' last positions.

    python expected.py WORK [CHATS STEPS]

A task is a folder: `package`, `task.json` (chats, their prompts as token ids, steps, end tokens, how many positions),
`expected.json` (greedy tokens) and `expected.f32` (logits, float32, [prompts * positions, vocabulary]).
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
from phi3_onnx.configs.store import cache_folder
from phi3_onnx.evaluate import corpus
from phi3_onnx.export import export
from phi3_onnx.export.small_model import fetch_small_model
from phi3_onnx.runtime import Model, load

CHATS, STEPS, POSITIONS = 5, 32, 16


def main(work: Path, chats: int = CHATS, steps: int = STEPS) -> None:
    small = fetch_small_model(cache_folder(), notify=print)
    tiny = work / "tiny"
    shutil.rmtree(tiny, ignore_errors=True)
    conftest().write_tiny(tiny, "plain")
    for name, source, target in (
        ("small-fp32", small, "cpu-fp32"),
        ("small-int4", small, "cpu-int4-rtn"),
        ("tiny-fp32", tiny, "cpu-fp32"),
    ):
        folder = work / "tasks" / name
        # Anew each time: what an older state of the project made would say nothing of this one.
        export(source, target, folder / "package", force=True)
        write_task(folder, chats, steps, exact=target == "cpu-fp32")
        print(f"expected of {name} written", flush=True)


def conftest() -> ModuleType:
    """Return the module of the tests' fixtures, which knows how to write a tiny checkpoint."""
    spec = importlib.util.spec_from_file_location("conftest", Path(__file__).parents[1] / "conftest.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_task(folder: Path, count: int, steps: int, *, exact: bool) -> None:
    with load(folder / "package", provider="cpu") as model:
        chats = corpus.chats()[:count]
        prompts = [model.encode(chat) for chat in chats]
        task = {
            "chats": chats,
            "prompts": prompts,
            "steps": steps,
            "end_tokens": sorted(model.package.end_tokens),
            "positions": POSITIONS,
            "exact": exact,
        }
        np.concatenate([last_logits(model, prompt) for prompt in prompts]).tofile(folder / "expected.f32")
        tokens = [greedy(model, prompt, steps) for prompt in prompts]
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    (folder / "expected.json").write_text(json.dumps(tokens), encoding="utf-8")


def greedy(model: Model, prompt: list[int], steps: int) -> list[int]:
    """Return the answer's tokens, an end token included."""
    response = None
    for chunk in model.run(prompt, model.options(temperature=0.0, max_tokens=steps)):
        response = chunk.response or response
    assert response is not None
    return list(response.token_ids)


def last_logits(model: Model, prompt: list[int]) -> np.ndarray:
    """Return float32 [POSITIONS, vocabulary]."""
    cache = model.new_cache()
    cache.reserve(len(prompt))
    rows = [cache.run_logits() for reached in cache.prefill(prompt) if reached]
    cache.close()
    logits = np.concatenate(rows)
    assert len(logits) == len(prompt), (len(logits), len(prompt))
    return logits[-POSITIONS:]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
