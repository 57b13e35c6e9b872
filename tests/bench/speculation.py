"""What prompt lookup gives: tokens a step and a second, in turn with plain decoding, and whether answers are the same.

    python tests/bench/speculation.py PACKAGE [--rounds 3] [--tokens 160] [--levels]

One text at a time, greedy, each kind of task with and without speculation in turn; ratios are medians over the rounds.
`--levels` prints how often lookup was right, by the length of the match, over all answers.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from phi3_onnx.runtime import Model, Response, load
from phi3_onnx.runtime.batch import BatchPrompt
from phi3_onnx.runtime.decoding.lookup import Lookup
from phi3_onnx.runtime.decoding.speculation import Speculation
from phi3_onnx.runtime.engines.together import Together

STORY = (
    "The harbour of Lindholm was built in 1874 by the engineer Karla Stensvik. She had 61 workers, two steam cranes "
    "and eleven months. The first wall broke in the storm of 3 February 1875, and nobody was hurt. Stensvik had it "
    "built again, four metres higher, from granite of the quarry at Rosnes. Since then the wall has held, and 230 "
    "fishing boats lie behind it today. The town gave her a street, a school and a statue, which looks at the sea."
)
CODE = '''def average(values):
    """Return the mean of the values that are numbers."""
    total, count = 0.0, 0
    for value in values:
        if isinstance(value, (int, float)):
            total += value
            count += 1
    return total / count if count else None


def largest(values):
    """Return the largest of the values that are numbers."""
    numbers = [value for value in values if isinstance(value, (int, float))]
    return max(numbers) if numbers else None
'''
TASKS = {
    "summary": "Summarize this text in three sentences, in its own words where you can.\n\n" + STORY,
    "edit": "Write this text again with the word harbour replaced by port. Give the whole text.\n\n" + STORY,
    "code": f"Rename the argument values to items, and give the whole code.\n\n```python\n{CODE}```",
    "extraction": "List all names, numbers and dates of this text, one a line.\n\n" + STORY,
    "quotation": "Which sentence of this text says what the town gave her? Quote it.\n\n" + STORY,
    "chat": "Why do leaves turn red in autumn?",
    "story": "Tell me a short story about a dragon that is afraid of fire.",
    "advice": "Give me five tips for a good night's sleep.",
}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--levels", action="store_true")
    args = parser.parse_args()
    with load(args.package, engine="together") as model:
        jobs = {
            kind: BatchPrompt(model.encode(text), model.options(max_tokens=args.tokens, temperature=0, logprobs=0))
            for kind, text in TASKS.items()
        }
        if args.levels:
            print(json.dumps(levels([(job.prompt, answer(model, "off", job)[0].token_ids) for job in jobs.values()])))
            return
        print(json.dumps({kind: measured(model, job, args.rounds) for kind, job in jobs.items()}, indent=1))


def answer(model: Model, speculation: str, job: BatchPrompt) -> tuple[Response, Together, float]:
    """Return the answer to a job, what made it, and the seconds of its decoding."""
    together = model.together(1, 0, Speculation.parse(speculation))
    assert together is not None
    response, begun = None, 0.0
    for chunk in model.joined(together, job.prompt, job.options):
        if chunk is None:
            together.step()
        else:
            begun = begun or time.perf_counter()
            response = chunk.response
    assert response is not None
    return response, together, time.perf_counter() - begun


def measured(model: Model, job: BatchPrompt, rounds: int) -> dict[str, float | bool]:
    """Return the figures of one task."""
    ratios, same = list[float](), True
    result, together, seconds = answer(model, "auto", job)
    for _ in range(rounds):
        plain, _, plain_seconds = answer(model, "off", job)
        result, together, seconds = answer(model, "auto", job)
        same = same and (plain.token_ids, plain.logprobs) == (result.token_ids, result.logprobs)
        ratios.append(plain_seconds / seconds)
    steps = len(result.token_ids) - 1 - together.accepted
    return {
        "tokens": len(result.token_ids),
        "tokens_a_step": round((len(result.token_ids) - 1) / max(steps, 1), 2),
        "accepted": together.accepted,
        "drafted": together.drafted,
        "faster": round(statistics.median(ratios), 2),
        "same": same,
    }


def levels(texts: list[tuple[Sequence[int], tuple[int, ...]]]) -> dict[int, list[float]]:
    """Return how often the token that followed a match was the next one, and of how many, by the match's length."""
    found: dict[int, list[int]] = {}
    for prompt, ids in texts:
        lookup = Lookup()
        lookup.extend(prompt)
        for token in ids:
            guess, matched = lookup.find(1)
            if matched:
                found.setdefault(matched.bit_length() - 1, []).append(guess[0] == token)
            lookup.extend([token])
    return {2**level: [round(sum(hits) / len(hits), 2), len(hits)] for level, hits in sorted(found.items())}


if __name__ == "__main__":
    main()
