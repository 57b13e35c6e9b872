"""What the server costs: tokens/s of one client beside plain ONNX Runtime GenAI, on one package in one sitting.

    python tests/bench/serve_overhead.py PACKAGE [--prompt 64] [--tokens 128] [--rounds 5] [--threads N]

Both run the same token ids greedily, in turn, each time another prompt, so that no cache helps; prompts whose answer
ends early are left out. The plain side is GenAI's own loop, `append_tokens` and `generate_next_token`, with the same
number of threads. Its time is that of the loop; the server's is the client's, from request to last byte. The client
shares the server's cores, so it does as little as one can: it reads bytes from a socket, and looks into them later. A
ratio is the median over the pairs. Beside speed: the longest that /health took while a prompt of the context's length
was run, and the time to the first token of a conversation's second turn, with the kept cache and without.
"""

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from phi3_onnx.runtime.providers.hardware import default_threads
from phi3_onnx.runtime.providers.imports import import_genai

Address = tuple[str, int]
# ONNX Runtime's threads spin for a while after a run: the other side's must be asleep.
_PAUSE_SECONDS = 0.2
_WARM_UP = 2  # pairs of each kind: the server's four caches are reserved in their first requests


def start(package: Path, threads: int, *options: str) -> tuple[subprocess.Popen[str], Address]:
    """Start the server on a free port; return its process and address."""
    command = [sys.executable, "-m", "phi3_onnx.cli", "serve", str(package), "--port", "0", "--threads", str(threads)]
    command += options
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"ready at http://(\S+):(\d+)", line):
            return process, (found[1], int(found[2]))
    raise SystemExit("the server did not start")


def plain(og: Any, model: Any, prompt: list[int], tokens: int) -> float:
    """Return the seconds that GenAI's own loop takes for `tokens` tokens after a prompt."""
    time.sleep(_PAUSE_SECONDS)
    length = len(prompt) + tokens
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, params)
    begun = time.perf_counter()
    generator.append_tokens(np.asarray(prompt, dtype=np.int32))
    for _ in range(tokens):
        generator.generate_next_token()
    return time.perf_counter() - begun


def served(address: Address, prompt: list[int], tokens: int, stream: bool) -> tuple[float, int, float]:
    """Return the seconds that the server takes, the tokens that it gave, and the seconds to the first bytes of text."""
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    text = json.dumps(body)
    head = f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\nConnection: close"
    request = f"POST /v1/completions HTTP/1.1\r\nHost: {address[0]}\r\n{head}\r\n\r\n{text}".encode()
    time.sleep(_PAUSE_SECONDS)
    begun, first, parts = time.perf_counter(), 0.0, []
    with socket.create_connection(address) as connection:
        connection.sendall(request)
        while part := connection.recv(2**16):
            parts.append(part)
            if not first and b'"text"' in part:
                first = time.perf_counter() - begun
    seconds, reply = time.perf_counter() - begun, b"".join(parts).decode()
    if not reply.startswith("HTTP/1.1 200 "):
        raise SystemExit(f"the server refused: {reply}")
    return seconds, int(re.findall(r'"completion_tokens":(\d+)', reply)[-1]), first


def slowest_health(address: Address, prompt: list[int]) -> tuple[float, int]:
    """Return the longest that /health took while a prompt was run, in seconds, and how often it was asked."""
    running = threading.Thread(target=served, args=(address, prompt, 1, False))
    running.start()
    taken: list[float] = []
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}") as other:
        other.get("/health")  # connect
        while running.is_alive():
            begun = time.perf_counter()
            other.get("/health").raise_for_status()
            taken.append(time.perf_counter() - begun)
            time.sleep(0.02)
    return max(taken), len(taken)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=default_threads())
    args = parser.parse_args()
    og = import_genai()
    config = og.Config(str(args.package))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": args.threads}}}}))
    model = og.Model(config)
    process, address = start(args.package, args.threads)
    speeds: dict[str, list[tuple[float, float]]] = {"whole": [], "stream": []}
    random = np.random.default_rng(0)
    try:
        while any(len(pairs) < args.rounds + _WARM_UP for pairs in speeds.values()):
            for kind, pairs in speeds.items():
                prompt = random.integers(1000, 20000, args.prompt).tolist()
                seconds, tokens, _ = served(address, prompt, args.tokens, kind == "stream")
                if tokens == args.tokens:
                    pairs.append((tokens / seconds, tokens / plain(og, model, prompt, tokens)))
        long = random.integers(1000, 20000, args.long).tolist()
        health, asked = slowest_health(address, long)
        more = random.integers(1000, 20000, 16).tolist()
        cached = served(address, [*long, *more], 2, True)[2]
        fresh = random.integers(1000, 20000, args.long + 16).tolist()
        anew = served(address, fresh, 2, True)[2]
    finally:
        process.terminate()
        process.wait()
    figures: dict[str, float] = {}
    for kind, pairs in speeds.items():
        own, other = zip(*pairs[_WARM_UP:], strict=True)
        figures[f"{kind}_tok_s"] = round(statistics.median(own), 2)
        figures[f"plain_beside_{kind}_tok_s"] = round(statistics.median(other), 2)
        figures[f"{kind}_to_plain"] = round(statistics.median(a / b for a, b in pairs[_WARM_UP:]), 3)
    print(
        json.dumps(
            {
                "engine": f"onnxruntime-genai {og.__version__}",
                "package": str(args.package),
                "threads": args.threads,
                **figures,
                "slowest_health_ms": round(1000 * health, 1),
                "health_asked": asked,
                "second_turn_first_token_s": {"cached": round(cached, 3), "anew": round(anew, 3)},
            }
        )
    )


if __name__ == "__main__":
    main()
