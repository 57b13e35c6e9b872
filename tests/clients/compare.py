"""Holds each client's results against our runtime's and prints a table; exit code 1 if one is out of its bounds.

Float32 packages: the same greedy tokens, and the same text from the model card's sample. Int4 packages with int8
activations: near ties flip, so the logits of the prompts' last positions are compared, with a mean KL below 0.02 nats.
"""

import json
import sys
from pathlib import Path

import numpy as np
from phi3_onnx.evaluate.parity.metrics import Comparison

MEAN_KL = 0.02
EXACT_KL = 1e-6
"""Float32 sums in another order differ by far less; another graph, or another cache, by far more."""


def main(work: Path, clients: list[str]) -> int:
    failed = False
    print(f"{'task':<16}{'client':<17}{'outcome':<8}{'same answers':<14}{'tokens':<10}{'mean KL':<11}version")
    for task in sorted((work / "tasks").iterdir()):
        for client in clients:
            result = task / "results" / client
            if not result.is_dir() or not any(result.iterdir()):
                continue
            passed, text = judge(task, result)
            failed |= not passed
            print(f"{task.name:<16}{client:<17}{'pass' if passed else 'fail':<8}{text}")
    return int(failed)


def judge(task: Path, result: Path) -> tuple[bool, str]:
    """Return whether a client keeps its bounds, and the columns that say so."""
    path = result / "result.json"
    if not path.is_file():
        lines = (result / "log").read_text(encoding="utf-8").strip().splitlines() or ["no result"]
        # Python says last what went wrong, and JavaScript first; `run` adds the exit code.
        return False, next((line for line in lines if "Error: " in line), lines[max(0, len(lines) - 2)])
    settings, found = json.loads((task / "task.json").read_text()), json.loads(path.read_text(encoding="utf-8"))
    ours = json.loads((task / "expected.json").read_text(encoding="utf-8"))
    ends = set(settings["end_tokens"])
    pairs = [(until_end(a, ends), until_end(b, ends)) for a, b in zip(ours["tokens"], found["tokens"], strict=True)]
    same = sum(a == b for a, b in pairs)
    agreed = sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False))
    kl = mean_kl(task / "expected.f32", result / "logits.f32", settings)
    passed = same == len(pairs) and kl < EXACT_KL if settings["exact"] else kl < MEAN_KL
    if found.get("card", ours["card"]) != ours["card"]:  # only a client with transformers' pipeline has it
        return False, f"the model card's sample gives {found['card']!r}, expected {ours['card']!r}"
    tokens = f"{agreed}/{sum(len(a) for a, _ in pairs)}"
    return passed, f"{f'{same} of {len(pairs)}':<14}{tokens:<10}{kl:<11.2e}{found['version']}"


def until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """Return an answer without its end token: some clients leave it out."""
    at = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:at]


def mean_kl(expected: Path, found: Path, settings: dict) -> float:
    """Return the mean KL(our runtime || client) over the last positions of all prompts, in nats."""
    rows = len(settings["prompts"]) * settings["positions"]
    ours, theirs = (np.fromfile(path, np.float32).reshape(rows, -1) for path in (expected, found))
    comparison = Comparison()
    comparison.add(ours, theirs, np.zeros(rows - 1, dtype=np.int64))  # perplexities are no part of this
    return comparison.result().mean_kl


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
