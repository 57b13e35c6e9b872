"""The time to the first token, cold and with what the prefix cache has, in memory and on disk after a restart.

    python tests/bench/first_token.py PACKAGE [--system 1500] [--rounds 3] [--threads N]

Each round has a system prompt of its own, of so many random tokens. Two conversations share it and take turns: the
first's first turn is cold, the second's finds the system prompt, and the second turns find all but their last tokens.
Then the server ends and starts again with the same `--cache-dir`, and a third conversation asks. Times are a client's,
from the request to the first token, in milliseconds, medians over the rounds; `times_shorter` is cold over each.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from phi3_onnx.runtime.providers.hardware import default_threads
from serve_overhead import Address, start

_TURN = 24  # tokens that a conversation adds
_SETTLE_SECONDS = 3.0  # a server that rests writes what it keeps to disk


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--system", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=default_threads())
    args = parser.parse_args()
    random = np.random.default_rng(0)
    systems = random.integers(1000, 20000, (args.rounds, args.system)).tolist()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        options = ("--parallel", "4", "--cache-dir", folder)
        process, address = start(args.package, args.threads, *options)
        try:
            first_token(address, turn(random))  # a server's first request reserves memory
            for system in systems:
                for kind, milliseconds in conversations(address, system, random).items():
                    found.setdefault(kind, []).append(milliseconds)
            time.sleep(_SETTLE_SECONDS)
        finally:
            process.terminate()
            process.wait()
        process, address = start(args.package, args.threads, *options)
        try:
            first_token(address, turn(random))
            found["after a restart"] = [first_token(address, system + turn(random)) for system in systems]
        finally:
            process.terminate()
            process.wait()
    medians = {kind: statistics.median(values) for kind, values in found.items()}
    shorter = {kind: round(medians["cold"] / value, 1) for kind, value in medians.items() if kind != "cold"}
    rounded = {kind: round(value, 1) for kind, value in medians.items()}
    print(json.dumps({"package": str(args.package), "first_token_ms": rounded, "times_shorter": shorter}))


def turn(random: np.random.Generator) -> list[int]:
    """Return the tokens that a turn adds, which no other turn has."""
    return random.integers(1000, 20000, _TURN).tolist()


def conversations(address: Address, system: list[int], random: np.random.Generator) -> dict[str, float]:
    """Return the milliseconds to the first token of two conversations' turns, which alternate."""
    one, other = system + turn(random), system + turn(random)
    return {
        "cold": first_token(address, one),
        "other conversation": first_token(address, other),
        "second turn": first_token(address, one + turn(random)),
        "other's second turn": first_token(address, other + turn(random)),
    }


def first_token(address: Address, prompt: list[int]) -> float:
    """Return the milliseconds from a request to its first token."""
    begun = time.perf_counter()
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
    httpx.post(f"http://{address[0]}:{address[1]}/v1/completions", json=body, timeout=None).raise_for_status()
    return 1000 * (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
