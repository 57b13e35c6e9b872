"""What `serve` gives several clients at once, whether each gets what it gets alone, and how long a stream stands still.

    python tests/bench/serve_together.py PACKAGE [--clients 1 2 4 8] [--rounds 3] [--tokens 96] [--prompts 50]
        [--beside URL]

One server answers all. Speeds: so many clients at a time ask prompts of their own, greedily; all their tokens by the
time until the last is through, the numbers of clients in turn, medians over the rounds. Sameness: prompts asked cold,
again, and all in a crowd, each with log probabilities; text and every number have to be equal. The pause: the longest
time between two pieces of a running stream, by itself and while a long prompt arrives.

`--beside` names another server with OpenAI's completions, already running on this machine, such as llama.cpp's
(`llama-server -m FILE.gguf -np 8 -c 8192 -t THREADS`). Its speeds are taken in turn with ours, with the same prompts;
both are told to go on past an end of the text (`ignore_eos`), so that both give as many tokens.
"""

import argparse
import itertools
import json
import statistics
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from phi3_onnx.runtime.providers.hardware import default_threads
from serve_overhead import start

_PAUSE_SECONDS = 0.3  # ONNX Runtime's threads spin for a while after a run


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--long", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--option", action="append", default=[], help="of `serve`, such as --option=--speculate=off")
    parser.add_argument("--beside", metavar="URL", help="another server, to measure in turn")
    args = parser.parse_args()
    process, (host, port) = start(args.package, args.threads, "--parallel", str(max(args.clients)), *args.option)
    random = np.random.default_rng(0)
    try:
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=None) as http:
            servers = {"tok_s": http}
            if args.beside:
                servers["beside_tok_s"] = httpx.Client(base_url=args.beside, timeout=None)
            speeds = {name: {count: list[float]() for count in args.clients} for name in servers}
            for _ in range(args.rounds):
                for count in args.clients:
                    asked = prompts(random, count, args.prompt)
                    for name, server in servers.items():
                        speeds[name][count].append(speed(server, asked, args.tokens))
            medians = {
                name: {count: round(statistics.median(found), 1) for count, found in counts.items()}
                for name, counts in speeds.items()
            }
            report = {
                "package": str(args.package),
                "threads": args.threads,
                **medians,
                "same": sameness(http, prompts(random, args.prompts, args.prompt), args.tokens, max(args.clients)),
                "pause_ms": pauses(http, prompts(random, 1, 16)[0], prompts(random, 1, args.long)[0]),
            }
    finally:
        process.terminate()
        process.wait()
    print(json.dumps(report))


def prompts(random: np.random.Generator, count: int, length: int) -> list[list[int]]:
    """Return random token ids: no two prompts share more than a token or two."""
    return random.integers(1000, 20000, (count, length)).tolist()


def ask(http: httpx.Client, prompt: list[int], tokens: int, **more: object) -> dict[str, Any]:
    """Return the server's answer to a prompt."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}
    reply = http.post("/v1/completions", json=body)
    reply.raise_for_status()
    return reply.json()


def crowd(
    http: httpx.Client, asked: Iterable[list[int]], tokens: int, clients: int, **more: object
) -> list[dict[str, Any]]:
    """Return the answers to prompts that so many clients ask at a time."""
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda prompt: ask(http, prompt, tokens, **more), asked))


def speed(http: httpx.Client, asked: list[list[int]], tokens: int) -> float:
    """Return the tokens a second of as many clients as there are prompts, together."""
    time.sleep(_PAUSE_SECONDS)
    begun = time.perf_counter()
    answers = crowd(http, asked, tokens, len(asked))
    return sum(answer["usage"]["completion_tokens"] for answer in answers) / (time.perf_counter() - begun)


def sameness(http: httpx.Client, asked: list[list[int]], tokens: int, clients: int) -> dict[str, int]:
    """Return how many prompts got the very same text and log probabilities cold, again, and in a crowd."""
    cold = [ask(http, prompt, tokens, logprobs=2)["choices"] for prompt in asked]
    again = [ask(http, prompt, tokens, logprobs=2)["choices"] for prompt in asked]
    together = [answer["choices"] for answer in crowd(http, asked, tokens, clients, logprobs=2)]
    return {
        "prompts": len(asked),
        "repeated": sum(one == other for one, other in zip(cold, again, strict=True)),
        "in_a_crowd": sum(one == other for one, other in zip(cold, together, strict=True)),
    }


def pauses(http: httpx.Client, prompt: list[int], long: list[int]) -> dict[str, float]:
    """Return the longest pauses of a stream in milliseconds: before a long prompt arrives, and while it runs.

    Raises:
        SystemExit: the stream was over before the long prompt was.

    """
    arrivals: list[float] = []
    enough = threading.Event()

    def stream() -> None:
        body = {"prompt": prompt, "max_tokens": 3000, "temperature": 1.0, "seed": 1, "stream": True, "ignore_eos": True}
        with http.stream("POST", "/v1/completions", json=body) as reply:
            for line in reply.iter_lines():
                if line.startswith("data:"):
                    arrivals.append(time.perf_counter())
                if enough.is_set():
                    return

    running = threading.Thread(target=stream)
    running.start()
    while len(arrivals) < 40 and running.is_alive():
        time.sleep(0.05)
    begun = time.perf_counter()
    ask(http, long, 1)
    ended = time.perf_counter()
    if not running.is_alive():
        raise SystemExit("the stream ended before the long prompt was through; take a shorter one, --long")
    enough.set()
    running.join()
    gaps = [(after, 1000 * (after - before)) for before, after in itertools.pairwise(arrivals)]
    return {
        "alone": round(max((gap for at, gap in gaps if at < begun), default=0.0), 1),
        "beside_long_prompt": round(max((gap for at, gap in gaps if begun <= at <= ended), default=0.0), 1),
        "long_prompt_s": round(ended - begun, 2),
    }


if __name__ == "__main__":
    main()
