"""What a copy of a graph with weights prepacked for this machine gives: time to load, and memory, alone and for two.

    python tests/bench/prepacked.py PACKAGE [--graph decode.onnx] [--rounds 5]

ONNX Runtime's option `session.save_external_prepacked_constant_initializers` writes the copy into a temporary folder.
Each load is a process of its own, the graph as it is and the copy in turn, all files in the page cache. Memory is the
process's own (anonymous pages, and pages of files that it wrote to), and its share of all (PSS) while two such
processes are loaded. `load` is `phi3_onnx.runtime.load` with nothing kept on the machine, then with what that kept, and
then with a copy as well. Prints one JSON object; times are medians, those of `load` but for the first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime as ort
from phi3_onnx.configs.store import HOME_VARIABLE
from phi3_onnx.runtime import load
from phi3_onnx.runtime.package import open_package
from phi3_onnx.runtime.proof.prepacked import keep_copy

_CHILD = "--child"


def options(copy: Path | None = None) -> ort.SessionOptions:
    """Return a session's options; with a path, those that write the copy there."""
    found = ort.SessionOptions()
    found.log_severity_level = 3
    if copy:
        found.optimized_model_filepath = str(copy)
        found.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
        found.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{copy.name}.data")
        found.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    return found


def memory() -> dict[str, int]:
    """Return this process's anonymous, private and proportional memory, in MB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    kilobytes = {name: int(text.split()[0]) for name, text in fields.items()}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    wanted = {"anonymous": kilobytes["Anonymous"], "private": private, "proportional": kilobytes["Pss"]}
    return {name: round(value * 1024 / 1e6) for name, value in wanted.items()}


def child(path: str) -> None:
    """Load a graph; print the seconds, and then, each time that a line comes in, the memory."""
    before, started = memory(), time.perf_counter()
    session = ort.InferenceSession(path, options(), providers=["CPUExecutionProvider"])
    print(time.perf_counter() - started, flush=True)
    for _ in sys.stdin:
        print(json.dumps({name: value - before[name] for name, value in memory().items()}), flush=True)
    del session


def start(path: Path) -> tuple[subprocess.Popen[str], float]:
    """Return a process that has loaded a graph, and the seconds that this took."""
    command = [sys.executable, __file__, _CHILD, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, float(process.stdout.readline())


def ask(process: subprocess.Popen[str]) -> dict[str, int]:
    """Return a process's memory."""
    assert process.stdin and process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def measured(paths: dict[str, Path], rounds: int) -> dict[str, dict[str, object]]:
    """Return what each of the graphs takes."""
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    found: dict[str, dict[str, object]] = {name: {} for name in paths}
    for number in range(rounds + 1):  # the first round fills the page cache
        for name, path in paths.items():
            process, taken = start(path)
            if number:
                seconds[name].append(taken)
            found[name]["alone_mb"] = ask(process)
            process.communicate()
    for name, path in paths.items():
        pair = [start(path)[0] for _ in range(2)]
        found[name]["each_of_two_mb"] = [ask(process) for process in pair]
        for process in pair:
            process.communicate()
        found[name]["load_seconds"] = round(statistics.median(seconds[name]), 2)
        found[name]["from_to"] = [round(min(seconds[name]), 2), round(max(seconds[name]), 2)]
    return found


def load_seconds(package: Path, rounds: int) -> dict[str, float]:
    """Return what it takes to load a package, first and later."""

    def once() -> float:
        started = time.perf_counter()
        load(package).close()
        return time.perf_counter() - started

    with tempfile.TemporaryDirectory(prefix="prepacked-") as home:
        os.environ[HOME_VARIABLE] = home
        first, again = once(), [once() for _ in range(rounds)]
        keep_copy(open_package(package), lambda _: "")
        copied = [once() for _ in range(rounds)]
    found = {"first": first, "again": statistics.median(again), "with_copy": statistics.median(copied)}
    return {name: round(seconds, 2) for name, seconds in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--graph", default="decode.onnx")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prepacked-") as folder:
        copy = Path(folder) / args.graph
        started = time.perf_counter()
        ort.InferenceSession(str(args.package / args.graph), options(copy), providers=["CPUExecutionProvider"])
        saving = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        table: dict[str, object] = {"saving_seconds": round(saving, 1), "copy_mb": round(size / 1e6)}
        table |= measured({"as_it_is": args.package / args.graph, "copy": copy}, args.rounds)
    table["load"] = load_seconds(args.package, args.rounds)
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == [_CHILD]:
        child(sys.argv[2])
    else:
        main()
