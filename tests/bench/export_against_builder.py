"""Time and memory of an export, ours and ONNX Runtime GenAI's model builder's, in turn on the same checkpoint.

    python tests/bench/export_against_builder.py CHECKPOINT [--rounds 1] [--target T] [--quant METHOD] [--skip-builder]

CHECKPOINT is a local Hugging Face folder (see tests/bench/README.md for a random one of Phi-3-mini's shape; calibrated
methods take the same time for each layer, so one of a few layers tells theirs). Prints one JSON line for each run, and
the ratios of the medians at the end. The builder needs `pip install onnxruntime-genai`.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


def measure(command: list[str]) -> tuple[float, float]:
    """Run a command to its end; return wall time in seconds and the peak memory of all its processes in GiB."""
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as log:
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        while process.poll() is None:
            peak = max(peak, memory(process))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{log.read().decode(errors='replace')[-2000:]}")
    return seconds, peak / (1 << 30)


def memory(process: psutil.Process) -> int:
    """Return the memory of a process and its children, pages that they share counted once (resident where unknown)."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                info = each.memory_full_info()
                total += getattr(info, "pss", info.rss)
    return total


def main() -> None:
    """Run the rounds and print figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--target", default="cpu-int4-rtn")
    parser.add_argument("--quant", help="the method of ours, in place of the target's")
    parser.add_argument("--skip-builder", action="store_true")
    args = parser.parse_args()
    runs: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, "-m", "phi3_onnx.cli", "export", str(args.checkpoint), "--target", args.target]
        if args.quant:
            ours += ["--quant", args.quant]
        commands = {"phi3-onnx": [*ours, "--no-verify", "-o", f"{folder}/ours"]}
        if not args.skip_builder:
            builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(args.checkpoint)]
            commands["builder"] = [
                *builder,
                "-o",
                f"{folder}/theirs",
                "-p",
                "int4",
                "-e",
                "cpu",
                "-c",
                f"{folder}/cache",
            ]
        for _ in range(args.rounds):
            for name, command in commands.items():
                seconds, gib = measure(command)
                runs.setdefault(name, []).append((seconds, gib))
                print(json.dumps({"run": name, "seconds": round(seconds, 1), "peak_gib": round(gib, 2)}), flush=True)
                for made in ("ours", "theirs", "cache"):
                    shutil.rmtree(f"{folder}/{made}", ignore_errors=True)
    if len(runs) == 2:
        (our_time, our_memory), (their_time, their_memory) = (
            [statistics.median(column) for column in zip(*runs[name], strict=True)] for name in commands
        )
        print(
            json.dumps(
                {"time_ratio": round(our_time / their_time, 3), "memory_ratio": round(our_memory / their_memory, 3)}
            )
        )


if __name__ == "__main__":
    main()
