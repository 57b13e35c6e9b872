"""Puts a Ray Serve application under load, kills one of its replicas, and says what became of every request.

    serve run phi3_onnx.deploy.ray_serve:app package=PACKAGE replicas=2
    python tests/deploy/load_and_kill.py --clients 8 --requests 40

Half of the requests are streamed. Every answer is compared with the one that the same request got before the kill.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about rain.",
    "Explain what a cache is.",
    "Name three colours and say where they are found.",
    "How does a bicycle stay upright?",
)


@dataclass(frozen=True)
class Outcome:
    """What one request got."""

    question: str
    text: str
    tokens: int
    problem: str | None


async def ask(client: httpx.AsyncClient, question: str, max_tokens: int, *, stream: bool) -> Outcome:
    """Send one request and read its answer to the end."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0.7,
        "seed": 11,
        "stream": stream,
    }
    text, tokens = "", 0
    try:
        if not stream:
            response = await client.post("/v1/chat/completions", json=body)
            if response.status_code != 200:
                return Outcome(question, "", 0, f"status {response.status_code}: {response.text[:200]}")
            table = response.json()
            return Outcome(
                question, table["choices"][0]["message"]["content"], table["usage"]["completion_tokens"], None
            )
        body["stream_options"] = {"include_usage": True}
        ended = False
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                return Outcome(question, "", 0, f"status {response.status_code}: {(await response.aread())[:200]!r}")
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    ended = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return Outcome(question, text, 0, f"error event: {event['error']}")
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        return Outcome(question, text, tokens, None if ended else "the stream ended early")
    except httpx.HTTPError as error:
        return Outcome(question, text, 0, f"{type(error).__name__}: {error}")


def replica_processes() -> list[psutil.Process]:
    """Return the replicas' processes, by the name that Ray gives them."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [""])[0].endswith(":Replica")
    ]


async def crowd(client: httpx.AsyncClient, clients: int, requests: int, max_tokens: int) -> tuple[list[Outcome], float]:
    """Let some clients send requests one after another; returns the outcomes and the seconds it took."""
    numbers = iter(range(requests))
    outcomes: list[Outcome] = []

    async def one() -> None:
        for number in numbers:
            question = QUESTIONS[number % len(QUESTIONS)]
            outcomes.append(await ask(client, question, max_tokens, stream=number % 2 == 0))

    begun = time.monotonic()
    await asyncio.gather(*(one() for _ in range(clients)))
    return outcomes, time.monotonic() - begun


async def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--kill-after", type=float, default=3.0, help="seconds; 0 kills none")
    args = parser.parse_args()
    async with httpx.AsyncClient(base_url=args.url, timeout=600) as client:
        for _ in range(240):
            try:
                if (await client.get("/health", timeout=10)).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            await asyncio.sleep(1)
        alone = {question: await ask(client, question, args.max_tokens, stream=False) for question in QUESTIONS}
        killed = []

        async def kill() -> None:
            await asyncio.sleep(args.kill_after)
            victims = replica_processes()
            print(f"replicas: {[process.pid for process in victims]}", flush=True)
            killed.append(victims[0].pid)
            os.kill(victims[0].pid, signal.SIGKILL)

        killing = asyncio.create_task(kill()) if args.kill_after else None
        outcomes, seconds = await crowd(client, args.clients, args.requests, args.max_tokens)
        if killing:
            await killing
        health = (await client.get("/health")).json()
    lost = [outcome for outcome in outcomes if outcome.problem]
    different = [
        outcome for outcome in outcomes if not outcome.problem and outcome.text != alone[outcome.question].text
    ]
    for outcome in lost[:5]:
        print("lost:", outcome)
    for outcome in different[:3]:
        print("different:", outcome.text, "|", alone[outcome.question].text)
    tokens = sum(outcome.tokens for outcome in outcomes)
    print(
        f"{len(outcomes)} requests of {args.clients} clients, {len(lost)} lost, {len(different)} different; killed: "
        f"{killed}; jobs repeated: {health['restarts']}; {tokens} tokens in {seconds:.1f} s: {tokens / seconds:.1f}/s"
    )
    return 1 if lost or different else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
