"""What prompt lookup gives: tokens a step and a second, in turn with plain decoding, and whether answers are the same.

    python tests/bench/speculation.py PACKAGE [--rounds 3] [--tokens 160] [--levels | --profile]

One text at a time, greedy, each kind of task with and without speculation in turn; ratios are medians over the rounds.
`--levels` prints how often lookup was right, by the length of the match, over all answers. `--profile` measures what
steps of 1 to 16 tokens take, and replays the answers by those figures: what the policy gains (`gain`), and what one
would that knew beforehand how much of each draft comes true (`at_best`).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from phi3_onnx.evaluate.step_costs import step_costs
from phi3_onnx.runtime import Model, Response, load
from phi3_onnx.runtime.batch import BatchPrompt
from phi3_onnx.runtime.decoding.lookup import Lookup, LookupDrafter
from phi3_onnx.runtime.decoding.speculation import MOST_DRAFTED, NO_DRAFT, Speculation, choose
from phi3_onnx.runtime.engines.costs import StepCosts
from phi3_onnx.runtime.engines.packed_engine import PackedEngine
from phi3_onnx.runtime.engines.together import Together

DEPTH = 300
"""Tokens before the steps whose time is taken."""
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
    "strict edit": "Copy the text below exactly, word for word, and change only the word harbour to port. Begin with: "
    "The port of Lindholm\n\nText:\n" + STORY,
    "word for word": "Repeat the following text exactly, word for word:\n\n" + STORY,
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
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    with load(args.package, engine="together") as model:
        jobs = {
            kind: BatchPrompt(model.encode(text), model.options(max_tokens=args.tokens, temperature=0, logprobs=0))
            for kind, text in TASKS.items()
        }
        if args.levels:
            print(json.dumps(levels([(job.prompt, answer(model, "off", job)[0].token_ids) for job in jobs.values()])))
            return
        if args.profile:
            print(json.dumps(profile(model, jobs), indent=1))
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


def profile(model: Model, jobs: Mapping[str, BatchPrompt]) -> dict[str, object]:
    """Return what steps cost here, and what each task's answer gains by those costs."""
    assert isinstance(model.engine, PackedEngine)
    graph = model.engine.graph
    known = step_costs(graph, DEPTH, range(1, MOST_DRAFTED + 2))

    def seconds(tokens: int) -> float:
        return known[graph.filled(tokens)]

    found: dict[str, object] = {"step_costs": {count: round(cost / seconds(1), 2) for count, cost in known.items()}}
    for kind, job in jobs.items():
        ids = answer(model, "off", job)[0].token_ids
        found[kind] = replayed(job.prompt, ids, seconds)
    return found


def replayed(prompt: Sequence[int], ids: Sequence[int], seconds: Callable[[int], float]) -> dict[str, float]:
    """Return what an answer gains by these costs, and what it could."""
    row: dict[str, float] = {}
    for name in ("gain", "at_best"):
        drafter, costs = LookupDrafter(), StepCosts({count: seconds(count) for count in (1, 2, 3, 5, 7, 8)})
        drafter.extend([*prompt, ids[0]])
        done, taken, steps, without = 1, 0.0, 0, 0
        while done < len(ids):
            draft = drafter.draft(min(MOST_DRAFTED, len(ids) - done - 1)) if done + 1 < len(ids) else NO_DRAFT
            pairs = zip(draft.tokens, ids[done:], strict=False)
            right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            if name == "gain":
                chosen = choose({"": draft}, 1, costs.seconds).get("", NO_DRAFT) if draft.tokens else NO_DRAFT
                run = len(chosen.tokens)
            else:
                run = max(range(right + 1), key=lambda count: (1 + count) / seconds(1 + count))
            taken, steps, without = taken + seconds(1 + run), steps + 1, without + (not draft.tokens)
            costs.note(1 + run, seconds(1 + run))
            came = min(right, run)
            drafter.extend(ids[done : done + came + 1])
            if run:
                drafter.learn(run, came)
            done += came + 1
        row[name] = round((len(ids) - 1) * seconds(1) / taken, 2)
        if name == "gain":
            row |= {"tokens_a_step": round((len(ids) - 1) / steps, 2), "steps_without_draft": round(without / steps, 2)}
    return row


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
