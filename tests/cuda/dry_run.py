"""What the CUDA wheels of ONNX Runtime and GenAI do with exported packages, on a machine without a GPU.

    tests/cuda/run [--pair cuda13 cuda12] [--kind ...] [--target ...] [--cache FOLDER] [--json FILE]
    tests/cuda/run --package FOLDER...   # these packages instead
    tests/cuda/run --tables              # write the tables of kernels in export/lint/kernels/ anew

Libraries that stand in for CUDA hold device memory in host memory, copy for real, and log kernels instead of running
them (device.c). The wheels' own host code runs as it is, so this shows what would be refused, what would land on the
CPU, what would be copied back and forth, and whether GenAI loads, steps, rewinds and captures CUDA graphs. It shows
nothing of what kernels compute, and nothing of speed.

A package passes if every node is on CUDA but the shape arithmetic that ONNX Runtime keeps on the CPU by itself, no
node copies between the two, plain ONNX Runtime and GenAI run through, and nothing was asked of the device that a real
one would refuse. Exit code: 0 all pass, 1 some fail, 77 the dry run cannot be made here (the reason is on stderr).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
from graphs import KINDS, TARGETS, make_package
from phi3_onnx.configs.store import cache_folder
from stand_in import HERE
from wheels import PAIRS, Environment, Pair, UnavailableError, make_environment

SKIPPED = 77
"""The exit code by which test drivers know a test that was not run."""
CACHE_VARIABLE = "PHI3_ONNX_CUDA_CACHE"
SECONDS = 300

# ONNX Runtime itself moves nodes that only handle shapes to the CPU, so that the host need not wait for the device
# (GetCpuPreferredNodes). They hold a number or two each: the length of the mask, where LongRoPE's rows begin, which
# positions are new. None is within a layer, where every node handles states.
SHAPE_ARITHMETIC = frozenset({"Squeeze", "Cast", "Greater", "Mul", "Add", "Sub", "Reshape"})
_LAYER = "/layers."
_PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
_COPIES = ("MemcpyToHost", "MemcpyFromHost")


@dataclass
class Row:
    """How one package did with one pair of wheels."""

    pair: str
    kind: str
    target: str
    on_cuda: int = 0
    on_cpu: dict[str, int] = field(default_factory=dict)
    """Operator -> nodes that are not on CUDA."""
    copies: int = 0
    """Nodes that copy between CUDA and the CPU."""
    kernels: int = 0
    """Launches, over all runs."""
    captures: int | None = None
    """CUDA graphs that GenAI captured; None where it does not."""
    replays: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems


def check_package(package: Path, row: Row, environment: Environment, pair: Pair) -> None:
    """Go through a package with one pair of wheels, and note in `row` what was found."""
    with tempfile.TemporaryDirectory() as name:
        log, optimized = Path(name) / "log", Path(name) / "optimized.onnx"
        placed = _child(row, environment, log, "place.py", package / "model.onnx", optimized)
        if placed is not None:
            _judge_placement(row, placed["nodes"])
            row.copies = sum(node.op_type in _COPIES for node in ir.load(optimized).graph)
            if row.copies:
                row.problems.append(f"{row.copies} nodes copy between CUDA and the CPU")
        stepped = _child(row, environment, log, "steps.py", package)
        if stepped is not None and stepped["device"] != "CUDA":
            row.problems.append(f"GenAI put the model on {stepped['device']}")
        if pair.captures:
            _child(row, environment, log, "steps.py", package, "--capture")
        _judge_log(row, log.read_text(encoding="utf-8").splitlines() if log.is_file() else [], pair)


def _child(row: Row, environment: Environment, log: Path, script: str, *arguments: Path | str) -> Any:
    """Run a script with the wheels; return what it prints, or None and note why it failed."""
    command = [str(environment.python), str(HERE / script), *map(str, arguments)]
    variables = {
        **os.environ,
        "LD_LIBRARY_PATH": str(environment.libraries),
        "DRY_CUDA_LOG": str(log),
        "ORT_DISABLE_TELEMETRY": "1",
    }
    variables.pop("PYTHONPATH", None)
    what = " ".join([script, *(argument for argument in arguments if isinstance(argument, str))])
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=variables, cwd=log.parent, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        row.problems.append(f"{what}: not done within {SECONDS} s")
        return None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        row.problems.append(f"{what}: {lines[-1] if lines else f'exit code {done.returncode}'}")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def _judge_placement(row: Row, nodes: Sequence[dict[str, str]]) -> None:
    row.on_cuda = sum(node["provider"] == "CUDAExecutionProvider" for node in nodes)
    elsewhere = [node for node in nodes if node["provider"] != "CUDAExecutionProvider"]
    row.on_cpu = dict(Counter(node["op"] for node in elsewhere))
    if not row.on_cuda:
        row.problems.append("no node is on CUDA")
    strays = [
        f"{node['op']} ({node['name']})"
        for node in elsewhere
        if node["op"] not in SHAPE_ARITHMETIC or _LAYER in node["name"]
    ]
    if strays:
        row.problems.append(f"not on CUDA: {', '.join(strays[:5])}")


def _judge_log(row: Row, log: Sequence[str], pair: Pair) -> None:
    counts = Counter(line.split(maxsplit=1)[0] for line in log if line)
    row.kernels, row.replays = counts["kernel"], counts["replay"]
    row.problems += [f"{line} ({count} times)" for line, count in Counter(log).items() if line.startswith("fault")]
    if not row.kernels:
        row.problems.append("no kernel was launched")
    if pair.captures:
        row.captures = log.count("capture ends")
        if not (row.captures and row.replays):
            row.problems.append(f"GenAI captured {row.captures} CUDA graphs and replayed {row.replays}")


def print_table(rows: Sequence[Row]) -> None:
    """Print a line for each package and pair of wheels, and below it what is wrong."""
    print(
        f"{'wheels':<8}{'graph':<11}{'target':<16}{'CUDA':>5}  {'CPU':<40}{'copies':>6}{'kernels':>9}{'captures':>10}"
    )
    for row in rows:
        cpu = ", ".join(f"{count} {op}" for op, count in sorted(row.on_cpu.items())) or "-"
        captures = "-" if row.captures is None else f"{row.captures}+{row.replays}"
        outcome = "pass" if row.passed else "FAIL"
        print(
            f"{row.pair:<8}{row.kind:<11}{row.target:<16}{row.on_cuda:>5}  {cpu:<40}{row.copies:>6}{row.kernels:>9}"
            f"{captures:>10}  {outcome}"
        )
        for problem in row.problems:
            print(f"        {problem}")


def write_tables(environments: Sequence[Environment]) -> None:
    """Write the kernels that these wheels have for CUDA and for the CPU, and this environment's for the CPU."""
    folder = HERE.parents[1] / "export" / "lint" / "kernels"
    runs = [(environment.python, environment.libraries, name) for environment in environments for name in _PROVIDERS]
    # The newest CPU wheel may be newer than the newest CUDA wheel.
    runs.append((Path(sys.executable), Path(), "cpu"))
    for python, libraries, provider in runs:
        command = [str(python), str(HERE / "dump_kernels.py"), _PROVIDERS[provider]]
        variables = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
        done = subprocess.run(command, capture_output=True, text=True, env=variables, check=True)
        path = folder / f"{provider}-{json.loads(done.stdout)['onnxruntime']}.json"
        path.write_text(done.stdout, encoding="utf-8")
        print(path)


def main() -> int:
    """Run what is asked for; see the module's own text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs="+", choices=PAIRS, default=list(PAIRS), help="wheels to run (default: all)")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS), help="graphs to run (default: all)")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--package", type=Path, nargs="+", help="go through these packages instead")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(os.environ.get(CACHE_VARIABLE) or cache_folder() / "cuda-dry-run"),
        help=f"where the wheels are kept (default: {CACHE_VARIABLE}, or the project's cache; 700 MB a pair)",
    )
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--tables", action="store_true", help="write export/lint/kernels/ anew, and do nothing else")
    args = parser.parse_args()
    try:
        environments = {name: make_environment(PAIRS[name], args.cache.absolute()) for name in args.pair}
    except UnavailableError as error:
        print(f"SKIPPED, the dry run on CUDA was not made: {error}", file=sys.stderr)
        return SKIPPED
    if args.tables:
        write_tables(list(environments.values()))
        return 0
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        if args.package:
            work = [(package.name, "-", package.absolute()) for package in args.package]
        else:
            work = [(kind, target, None) for kind in args.kind for target in args.target]
        for kind, target, package in work:
            folder = package or make_package(kind, target, Path(name))
            for pair, environment in environments.items():
                rows.append(Row(pair, kind, target))
                check_package(folder, rows[-1], environment, PAIRS[pair])
    print_table(rows)
    if args.json:
        content = [{**asdict(row), "passed": row.passed} for row in rows]
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
