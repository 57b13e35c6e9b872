"""What a client meets beside another one that asks for far more than the server can do.

    python tests/bench/fair_shares.py PACKAGE [--requests 200] [--tokens 64] [--seconds 30]

One client keeps so many requests open. Another asks for eight tokens, again and again: by itself, from the first one's
address, and from an address of its own. Prints one JSON object: of each, how many of its requests were answered and
refused (status 429), and the median and the longest time until an answer was whole, in seconds.
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

import httpx
from phi3_onnx.runtime.providers.hardware import default_threads
from serve_overhead import start

_PAUSE_SECONDS = 0.5
_CROWD, _GUEST = "192.0.2.1", "192.0.2.2"  # addresses for documentation (RFC 5737)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=default_threads())
    args = parser.parse_args()
    process, (host, port) = start(args.package, args.threads, "--parallel", "4")
    try:
        print(json.dumps(asyncio.run(measure(f"http://{host}:{port}", args)), indent=1))
    finally:
        process.terminate()
        process.wait()


async def measure(url: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return what the second client met, by where it came from."""
    limits = httpx.Limits(max_connections=args.requests + 8)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as http:
        found = {"alone": await guest(http, _GUEST, args.seconds / 3)}
        for name, address in (("beside, same address", _CROWD), ("beside, own address", _GUEST)):
            crowd = [asyncio.create_task(keep_asking(http, number, args.tokens)) for number in range(args.requests)]
            await asyncio.sleep(3)
            found[name] = await guest(http, address, args.seconds)
            for task in crowd:
                task.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)
            await asyncio.sleep(2)
    return found


async def keep_asking(http: httpx.AsyncClient, number: int, tokens: int) -> None:
    """Ask one request after another, and come back when told."""
    while True:
        reply = await ask(http, _CROWD, f"A story about the number {number}", tokens)
        if reply.status_code == 429:
            await asyncio.sleep(float(reply.headers["Retry-After"]))


async def guest(http: httpx.AsyncClient, address: str, seconds: float) -> dict[str, Any]:
    """Ask for a few tokens, again and again."""
    times: list[float] = []
    refused, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        reply = await ask(http, address, "The weather is", 8)
        if reply.status_code == 200:
            times.append(time.perf_counter() - begun)
        else:
            refused += 1
        await asyncio.sleep(_PAUSE_SECONDS)
    middle, longest = (statistics.median(times), max(times)) if times else (float("nan"), float("nan"))
    return {"answered": len(times), "refused": refused, "median_s": round(middle, 2), "longest_s": round(longest, 2)}


async def ask(http: httpx.AsyncClient, address: str, prompt: str, tokens: int) -> httpx.Response:
    """Complete a prompt, as a proxy passes it on for an address."""
    body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    return await http.post("/v1/completions", json=body, headers={"X-Forwarded-For": address})


if __name__ == "__main__":
    main()
