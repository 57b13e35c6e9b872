"""What answering prompts side by side gains: tokens/s of `generate_many` at several batch sizes, in one sitting.

    python tests/bench/batch_sizes.py PACKAGE [--batch 1 2 4 8 16] [--requests 16] [--prompt 64] [--tokens 64]

The requests are random token ids, of 1/2 to 3/2 of `--prompt` tokens, and get exactly `--tokens` tokens each. A batch
of 1 is what `generate --jsonl --batch 1` does: ONNX Runtime GenAI, one request after another. All sizes are run in
turn, `--rounds` times, and medians are compared. `decode_step_ms` is one token for each row, without prompts. Whether
the tokens are those of the batch of 1 is said too.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from phi3_onnx.runtime import Model, Response, load
from phi3_onnx.runtime.batch import BatchPrompt, answer_all
from phi3_onnx.runtime.engines.ort import OrtEngine

_STEPS = 24


def answers(model: Model, jobs: Sequence[BatchPrompt], batch: int) -> tuple[float, list[tuple[int, ...]]]:
    """Return the seconds that all requests take, and their tokens."""
    begun = time.perf_counter()
    results = list(answer_all(model, jobs, batch=batch))
    seconds = time.perf_counter() - begun
    return seconds, [result.token_ids for result in results if isinstance(result, Response)]


def decode_step(engine: OrtEngine, prompt: int, rows: int) -> float:
    """Return the median seconds of a run of one token in each of so many rows, after `prompt` tokens."""
    pool = engine.pool(rows, prompt + _STEPS)
    sequences = [pool.open(pool.capacity) for _ in range(rows)]
    for sequence in sequences:
        sequence.append(range(1, prompt + 1))
    taken = []
    for _ in range(_STEPS):
        for sequence in sequences:
            sequence.append([5])
        begun = time.perf_counter()
        sequences[0].logits()
        taken.append(time.perf_counter() - begun)
    pool.close()
    return statistics.median(taken)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    random = np.random.default_rng(0)
    alone, together = load(args.package), load(args.package, engine="onnxruntime")
    assert isinstance(together.engine, OrtEngine)
    for model in (alone, together):  # random text meets an end token now and then; all answers are to be as long
        model.package.__dict__["end_tokens"] = frozenset()
    options = alone.options(max_tokens=args.tokens, temperature=0)
    lengths = random.integers(args.prompt // 2, args.prompt * 3 // 2 + 1, args.requests)
    prompts = [random.integers(100, alone.package.contract.vocab_size, length).tolist() for length in lengths]
    jobs = [BatchPrompt(prompt, options) for prompt in prompts]
    seconds: dict[int, list[float]] = {size: [] for size in args.batch}
    steps: dict[int, list[float]] = {size: [] for size in args.batch}
    same: dict[int, bool] = {}
    right = answers(alone, jobs[:2], 1)[1]  # warms up too
    answers(together, jobs[:2], 2)
    for _ in range(args.rounds):
        for size in args.batch:
            taken, tokens = answers(alone if size == 1 else together, jobs, size)
            seconds[size].append(taken)
            right = tokens if size == 1 else right
            same[size] = tokens == right
            steps[size].append(decode_step(together.engine, args.prompt, size))
            gc.collect()
    found = {}
    first = statistics.median(seconds[args.batch[0]])
    for size in args.batch:
        taken, step = statistics.median(seconds[size]), statistics.median(steps[size])
        found[size] = {
            "answer_tok_s": round(args.requests * args.tokens / taken, 1),
            "ratio": round(first / taken, 2),
            "decode_step_ms": round(1000 * step, 2),
            "decode_tok_s": round(size / step, 1),
            "same_tokens": same[size],
        }
    prompt_tokens = int(sum(lengths))
    print(json.dumps({"package": str(args.package), "prompt_tokens": prompt_tokens, "batch": found}, indent=1))


if __name__ == "__main__":
    main()
