"""A server at capacity, for half an hour: nothing gets stuck, nothing grows, everybody is answered or told why not.

    tests/soak/run                        half an hour on a tiny model
    tests/soak/run --minutes 10 --clients 24 --package my-package

Clients of the kinds in clients.py come in a random order, so many at a time. Beside them, a small request each second
measures the time to its first token, which is compared with that of the quiet server before. Every five seconds the
memory of the server's processes is read. At the end the load stops, and the server must come to rest: no request
running or waiting, and as many answers at a time as it has slots.

What the server keeps of texts that ended is bounded (`--cache-memory`) so that it is full before the warm-up is over:
by default it may grow to a quarter of the free memory, and would grow for hours.

Exit code 1 where a promise was broken, a process was restarted, a slot stayed taken, or memory grew by 2 % or more from
the end of the warm-up (a third of the time) to the end.
"""

import argparse
import asyncio
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from .clients import VISITS, BrokenPromiseError, Server, first_token, plain

TESTS = Path(__file__).parents[1]
_SAMPLE_SECONDS = 5.0
_PROBE_SECONDS = 1.0
_QUIET_PROBES = 30
_REST_SECONDS = 60.0
_MOST_GROWTH = 0.02
_YOUNG_SECONDS = 15.0
_MOST_SHOWN = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=16, help="at a time  [default: %(default)s]")
    parser.add_argument("--parallel", type=int, default=4, help="slots of the server  [default: %(default)s]")
    parser.add_argument("--package", type=Path, help="what is served  [default: a tiny random model]")
    parser.add_argument("--cache-memory", default="1MB", help="for texts that ended  [default: %(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="judge its growth")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="phi3-onnx-soak-") as folder:
        os.environ["PHI3_ONNX_HOME"] = folder
        package = options.package or _tiny_package(Path(folder))
        process, host, port, log = _start(package, options, Path(folder))
        try:
            report = asyncio.run(_soak(process, host, port, options))
        finally:
            process.terminate()
            code = process.wait(60)
        noise = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if "Traceback" in line]
    problems = list(report.pop("problems"))
    if code:
        problems.append(f"the server ended with exit code {code}")
    if noise:
        problems.append(f"{len(noise)} tracebacks in the server's log")
    print(json.dumps(report, indent=1))
    for problem, count in Counter(problems).most_common(_MOST_SHOWN):
        print(f"FAILED, {count} times: {problem}")
    return 1 if problems else 0


def _tiny_package(folder: Path) -> Path:
    sys.path[:0] = [str(TESTS), str(TESTS / "doubles")]
    from conftest import write_tiny
    from phi3_onnx.export import export

    write_tiny(folder / "tiny", "llama")
    return export(folder / "tiny", "cpu-int4-rtn", folder / "package")


def _start(package: Path, options: argparse.Namespace, folder: Path) -> tuple[subprocess.Popen[bytes], str, int, Path]:
    log = folder / "log"
    command = [sys.executable, "-m", "phi3_onnx.cli", "serve", str(package), "--port", "0"]
    command += ["--parallel", str(options.parallel), "--cache-memory", options.cache_memory]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file)
    for _ in range(1200):
        if found := re.search(r"ready at http://(\S+?):(\d+)", log.read_text()):
            return process, found[1], int(found[2]), log
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"the server did not start: {log.read_text()}")


async def _soak(process: subprocess.Popen[bytes], host: str, port: int, options: argparse.Namespace) -> dict[str, Any]:
    # Kept connections are given up before the server does, so that no request meets one that is just being closed.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=1)
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=300, limits=limits) as http:
        models = (await http.get("/v1/models")).json()
        context = int(models["data"][0]["max_model_len"])
        server = Server(host, port, http, random.Random(options.seed), context)
        await _metrics(server)  # what is asked for at the end has to be there
        quiet = [await first_token(server) for _ in range(_QUIET_PROBES)]
        while not (family := _family(process.pid)):
            await asyncio.sleep(1)
        until = time.monotonic() + 60 * options.minutes
        outcomes: dict[str, Counter[str]] = {name: Counter() for name in VISITS}
        problems: list[str] = []
        probes: list[float] = []
        weights: list[tuple[float, list[float]]] = []
        tasks = [_visitor(server, until, outcomes, problems) for _ in range(options.clients)]
        await asyncio.gather(
            *tasks, _probe(server, until, probes, problems), _weigh([process.pid, *family], until, weights)
        )
        problems += await _rest(server, options.parallel)
        if (now := _family(process.pid)) != family:
            problems.append(f"processes changed: {family} before, {now} after")
        metrics = await _metrics(server)
        if restarts := metrics["phi3_onnx_engine_restarts"]:
            problems.append(f"the engine was started again {restarts:.0f} times")
    memory = [(when, sum(parts)) for when, parts in weights]
    growth = _growth(memory)
    if options.memory and growth >= _MOST_GROWTH:
        problems.append(f"memory grew by {growth:.1%} after the warm-up")
    visits = sum(sum(counts.values()) for counts in outcomes.values())
    busy = sum(math.isnan(value) for value in probes)
    under_load = [value for value in probes if not math.isnan(value)]
    return {
        "minutes": options.minutes,
        "clients": options.clients,
        "visits": visits,
        "outcomes": {name: dict(counts) for name, counts in outcomes.items()},
        "memory_mb": {
            "first": round(memory[0][1] / 1e6),
            "last": round(memory[-1][1] / 1e6),
            "growth": round(growth, 4),
            "by sixths of the time": _by_parts(memory, 6),
            "the web process": _by_parts([(when, parts[0]) for when, parts in weights], 6),
        },
        "ttft_ms_quiet": _percentiles(quiet),
        "ttft_ms_under_load": _percentiles(under_load) | {"probes": len(under_load), "no room": busy},
        "problems": problems,
    }


async def _visitor(server: Server, until: float, outcomes: dict[str, Counter[str]], problems: list[str]) -> None:
    names = list(VISITS)
    weights = [VISITS[name][1] for name in names]
    while time.monotonic() < until:
        (name,) = server.random.choices(names, weights)
        try:
            outcomes[name][await VISITS[name][0](server)] += 1
        except (BrokenPromiseError, httpx.HTTPError, TimeoutError, OSError, ValueError, KeyError) as problem:
            outcomes[name]["BROKEN"] += 1
            problems.append(f"{name}: {problem!r}"[:500])
            print(time.strftime("%H:%M:%S"), problems[-1], file=sys.stderr, flush=True)


async def _probe(server: Server, until: float, probes: list[float], problems: list[str]) -> None:
    while time.monotonic() < until:
        try:
            probes.append(await first_token(server))
        except (BrokenPromiseError, httpx.HTTPError) as problem:
            problems.append(f"probe: {type(problem).__name__} {problem}")
        await asyncio.sleep(_PROBE_SECONDS)


async def _weigh(numbers: Sequence[int], until: float, weights: list[tuple[float, list[float]]]) -> None:
    while time.monotonic() < until:
        weights.append((time.monotonic(), [_weight(number) for number in numbers]))
        await asyncio.sleep(_SAMPLE_SECONDS)


def _weight(number: int) -> float:
    """Return the bytes of memory that are a process's own; 0 where there is none, which is told at the end."""
    try:
        return psutil.Process(number).memory_full_info().uss
    except psutil.Error:
        return 0.0


def _family(number: int) -> list[int]:
    """Return the numbers of the processes that a server has all the time, without those that try a grammar."""
    children = psutil.Process(number).children()
    return sorted(child.pid for child in children if time.time() - child.create_time() > _YOUNG_SECONDS)


async def _rest(server: Server, slots: int) -> list[str]:
    """Wait until nothing runs or waits, then take all slots at once; return what is wrong."""
    until = time.monotonic() + _REST_SECONDS
    while True:
        metrics = await _metrics(server)
        taken = {name: metrics[f"phi3_onnx_requests_{name}"] for name in ("running", "waiting")}
        if not any(taken.values()):
            break
        if time.monotonic() >= until:
            return [f"after {_REST_SECONDS:.0f} s of rest: {taken}"]
        await asyncio.sleep(0.5)
    answers = await asyncio.gather(*(plain(server) for _ in range(slots)))
    return [] if set(answers) == {"answered"} else [f"{slots} slots, but the answers at rest were {answers}"]


async def _metrics(server: Server) -> dict[str, float]:
    """Return the server's metrics by name, those of all labels together."""
    text = (await server.http.get("/metrics")).text
    found: dict[str, float] = {}
    for name, value in re.findall(r"^(phi3_onnx_\w+)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
        found[name] = found.get(name, 0.0) + float(value)
    names = ("phi3_onnx_requests_running", "phi3_onnx_requests_waiting", "phi3_onnx_engine_restarts")
    missing = set(names) - found.keys()
    if missing:
        raise SystemExit(f"/metrics has no {', '.join(sorted(missing))}")
    return found


def _growth(memory: Sequence[tuple[float, float]]) -> float:
    """Return by what share memory grew: the last sixth of the time against the one after the warm-up, medians."""
    first, last = memory[0][0], memory[-1][0]
    share = [((when - first) / ((last - first) or 1), weight) for when, weight in memory]
    before = [weight for part, weight in share if 2 / 6 <= part < 3 / 6]
    after = [weight for part, weight in share if part >= 5 / 6]
    return statistics.median(after) / statistics.median(before) - 1 if before and after else 0.0


def _by_parts(memory: Sequence[tuple[float, float]], parts: int) -> list[float]:
    """Return the median memory of each part of the time, in MB."""
    size = math.ceil(len(memory) / parts)
    pieces = [memory[start : start + size] for start in range(0, len(memory), size)]
    return [round(statistics.median(weight for _, weight in piece) / 1e6, 1) for piece in pieces]


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=20)
    return {"p50": round(1000 * cuts[9], 1), "p95": round(1000 * cuts[18], 1)}


if __name__ == "__main__":
    sys.exit(main())
