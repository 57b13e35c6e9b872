"""Whether a request gets the same bytes and log probabilities however it is run, on as many packages as are named.

    python tests/bench/same_answers.py PACKAGE... [--prompts 200] [--tokens 24]

Every prompt has a system message that others have too. Half of the answers are greedy, half are drawn with a seed. Each
is made cold and alone, and then: repeated with its own cache; in a crowd of eight; run ahead by six tokens wherever
there is a draft, alone and in the crowd; and, with `model.run`, through the other door that `generate` and `chat` use.
Tokens, text and log probabilities (to the last bit) have to be those of the first time; the counts of those that are,
and what is the largest difference of a log probability where tokens agree, are printed as a line of JSON a package.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from phi3_onnx.runtime import Model, Response, load
from phi3_onnx.runtime.batch import BatchPrompt, answer_together
from phi3_onnx.runtime.decoding.response import last_response
from phi3_onnx.runtime.decoding.speculation import OFF, Speculation
from phi3_onnx.runtime.engines.together import Together

SYSTEMS = (
    "You are a helpful assistant.",
    "You answer in one short sentence, and repeat the question's own words where you can.",
    "You are a poet. You answer with one line, and you never use the letter q.",
)
ASKS = (
    "What is {}?",
    "Say this again, word for word: {} and {} and {}.",
    "List three facts about {}.",
    "Why do people like {}? Begin with: people like {}",
    "Translate to French: I have seen {}.",
)
TOPICS = ("rain", "bread", "a bridge", "the moon", "trains", "a small dog", "chess", "paper", "the sea", "an old clock")
TOPICS += ("snow", "a harbour", "numbers", "glass", "a long letter")
CROWD = 8
AHEAD = Speculation(6, always=True)


def jobs(model: Model, count: int, tokens: int) -> list[BatchPrompt]:
    """Return so many different requests."""
    found = []
    for number in range(count):
        topic, ask = TOPICS[number % len(TOPICS)], ASKS[number // len(TOPICS) % len(ASKS)]
        prompt = ask.replace("{}", topic) + " Please." * (number // (len(TOPICS) * len(ASKS)))
        ids = model.encode(prompt, system=SYSTEMS[number % len(SYSTEMS)])
        drawn: dict[str, Any] = (
            {"temperature": 0.9, "seed": number, "top_p": 0.95} if number % 2 else {"temperature": 0}
        )
        found.append(BatchPrompt(ids, model.options(max_tokens=tokens, logprobs=3, **drawn)))
    return found


def core(model: Model, slots: int, speculation: Speculation) -> Together:
    """Return what decodes so many texts together, and keeps what they leave."""
    together = model.together(slots, 2**28, speculation)
    if together is None:
        raise SystemExit(f"{model.package.name} has no decode.onnx, which all this is about")
    return together


def answers(model: Model, together: Together, asked: Sequence[BatchPrompt]) -> list[Response]:
    """Return the answers to jobs that are all asked at once.

    Raises:
        Phi3OnnxError: one has none.

    """
    found = dict(answer_together(model, together, asked))
    if errors := [result for result in found.values() if not isinstance(result, Response)]:
        raise errors[0]
    return [result for _, result in sorted(found.items()) if isinstance(result, Response)]


def ways(model: Model, asked: Sequence[BatchPrompt]) -> Iterator[tuple[str, list[Response]]]:
    """Yield what a way to run the jobs is called, and their answers in it."""
    cold = [answers(model, core(model, 1, OFF), [job])[0] for job in asked]
    yield "cold", cold
    alone = core(model, 1, OFF)
    answers(model, alone, asked)
    yield "repeated", [answers(model, alone, [job] * 2)[1] for job in asked]
    yield "in_a_crowd", answers(model, core(model, CROWD, OFF), asked)
    ahead = core(model, 1, AHEAD)
    yield "speculated", [answers(model, ahead, [job])[0] for job in asked]
    yield "speculated_in_a_crowd", answers(model, core(model, CROWD, AHEAD), asked)
    yield "generate", [last_response(model.run(job.prompt, job.options)) for job in asked]


def report(model: Model, asked: Sequence[BatchPrompt]) -> dict[str, object]:
    """Return the counts of one package."""
    found = dict(ways(model, asked))
    cold = found.pop("cold")
    table: dict[str, object] = {"package": model.package.name, "prompts": len(asked), "engine": model.engine.name}
    table["tokens"] = sum(response.completion_tokens for response in cold)
    for name, responses in found.items():
        pairs = list(zip(cold, responses, strict=True))
        same = sum((a.token_ids, a.text, a.logprobs) == (b.token_ids, b.text, b.logprobs) for a, b in pairs)
        counts: dict[str, float] = {"same": same, "cached": sum(response.cached_tokens for response in responses)}
        if drafted := sum(response.drafted_tokens for response in responses):
            counts |= {"drafted": drafted, "accepted": sum(response.accepted_tokens for response in responses)}
        if same < len(asked):
            counts["apart"] = max(map(_apart, pairs))
        table[name] = counts
    return table


def _apart(pair: tuple[Response, Response]) -> float:
    """Return the largest difference of log probabilities up to where the tokens of two answers differ."""
    entries = zip(pair[0].logprobs or (), pair[1].logprobs or (), strict=False)
    apart = 0.0
    for one, other in entries:
        if one.token_id != other.token_id:
            break
        apart = max(apart, abs(one.logprob - other.logprob))
    return apart


def main() -> None:
    """Print one line of JSON a package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="+")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=24)
    args = parser.parse_args()
    for package in args.packages:
        with load(package, engine="together", speculate="off") as model:
            print(json.dumps(report(model, jobs(model, args.prompts, args.tokens))), flush=True)


if __name__ == "__main__":
    main()
