"""What our runtime gives: packages, prompts of some chats, greedy tokens, logits of the prompts' last positions.

    python expected.py WORK [CHATS STEPS]

A task is a folder: `package`, `task.json` (chats, their prompts as token ids, steps, end tokens, how many positions,
and the messages and arguments of Phi-3's model card), `expected.json` (greedy tokens, and the card's text) and
`expected.f32` (logits, float32, [prompts * positions, vocabulary]).
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from phi3_onnx.configs.manifest import SELF_TEST_NAME
from phi3_onnx.configs.store import cache_folder
from phi3_onnx.evaluate import checked
from phi3_onnx.evaluate.parity import corpus
from phi3_onnx.export import export
from phi3_onnx.export.sources.small_model import fetch_small_model
from phi3_onnx.runtime import Model, load, pipeline
from phi3_onnx.runtime.engines.packed import DECODE_NAME

CHATS, STEPS, POSITIONS = 5, 32, 16
# The sample of Phi-3-mini's model card, with fewer tokens than its 500.
CARD_MESSAGES = [
    {"role": "system", "content": "You are a helpful AI assistant."},
    {"role": "user", "content": "Can you provide ways to eat combinations of bananas and dragonfruits?"},
    {
        "role": "assistant",
        "content": "Sure! Here are some ways to eat bananas and dragonfruits together: 1. Banana and dragonfruit "
        "smoothie: Blend bananas and dragonfruits together with some milk and honey. 2. Banana and dragonfruit salad: "
        "Mix sliced bananas and dragonfruits together with some lemon juice and honey.",
    },
    {"role": "user", "content": "What about solving an 2x + 3 = 7 equation?"},
]
CARD_ARGUMENTS = {"max_new_tokens": 100, "return_full_text": False, "temperature": 0.0, "do_sample": False}
SAVE_FOLDER = Path(__file__).parents[1] / "bench/save_folder.py"


def main(work: Path, chats: int = CHATS, steps: int = STEPS) -> None:
    small = fetch_small_model(cache_folder(), notify=print)
    ungrouped = work / "ungrouped"
    for folder in (ungrouped, work / "tasks"):  # what an older state of the project made would say nothing of this one
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, SAVE_FOLDER, small, ungrouped, "--ungrouped"], check=True)
    for name, source, target in (
        ("small-fp32", small, "cpu-fp32"),
        ("small-int4", small, "cpu-int4-rtn"),
        ("ungrouped-fp32", ungrouped, "cpu-fp32"),
    ):
        folder = work / "tasks" / name
        export(source, target, folder / "package", verify=checked)
        # What other clients must not trip over: they are to load packages as `phi3-onnx export` leaves them.
        beside = [SELF_TEST_NAME, *([DECODE_NAME] if target == "cpu-int4-rtn" else [])]
        assert all((folder / "package" / file).is_file() for file in beside), f"{name} lacks one of {beside}"
        write_task(folder, chats, steps, exact=target == "cpu-fp32")
        print(f"expected of {name} written", flush=True)


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
            "messages": CARD_MESSAGES,
            "generation_args": CARD_ARGUMENTS,
        }
        np.concatenate([last_logits(model, prompt) for prompt in prompts]).tofile(folder / "expected.f32")
        tokens = [greedy(model, prompt, steps) for prompt in prompts]
        card = pipeline("text-generation", model=model)(CARD_MESSAGES, **CARD_ARGUMENTS)[0]["generated_text"]
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    (folder / "expected.json").write_text(json.dumps({"tokens": tokens, "card": card}), encoding="utf-8")


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
