"""Size and quality of every target's package of one model, on the CPU provider; and of an older state of the project.

    python tests/bench/targets_table.py [SOURCE] [--folder FOLDER] [--before PYTHON] [--target ...]

SOURCE is a checkpoint, by default the small real model. Packages are made in FOLDER, and used again where they lie
there; calibrated ones take minutes. PYTHON is the interpreter of an environment with an older state of the project: its
packages of the same targets are made too (in FOLDER/before), and scored by the same lines of this state.

All packages run on the CPU provider, whatever they are made for, on the same text (by default the project's own test
text, in stretches of 512 tokens), and are compared with `cpu-fp32` there, which verification holds against PyTorch.
Sizes are those of all files of a package. Prints a table in Markdown; exit code 1 if a package could not be made or
run, grew by more than 1 %, or has a larger mean KL than before.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from phi3_onnx.configs import Phi3OnnxError, targets
from phi3_onnx.configs.store import cache_folder
from phi3_onnx.evaluate.evaluate import stretches
from phi3_onnx.evaluate.parity import corpus
from phi3_onnx.evaluate.parity.corpus import Passage
from phi3_onnx.evaluate.parity.metrics import Metrics
from phi3_onnx.export.sources.small_model import fetch_small_model
from phi3_onnx.runtime.package import open_package
from quality_against_peers import package_logits, score

REFERENCE = "cpu-fp32"
CONTEXT = 512
GROWTH = 1.01
# Two exports of one state differ by less: calibration's sums depend on the number of threads.
KL_NOISE = 0.005
"""Share of a mean KL that says nothing."""


@dataclass(frozen=True)
class Row:
    """One target's package of one state of the project."""

    size: int = 0
    metrics: Metrics | None = None
    problem: str = ""
    """Why there are no figures."""


def make(python: str, source: Path, target: str, folder: Path, samples: int) -> str:
    """Export a package where there is none yet; return why there is none afterwards, or nothing."""
    if not folder.exists():
        command = [python, "-m", "phi3_onnx.cli", "export", str(source), "--target", target, "-o", str(folder)]
        calibrated = (quantization := targets()[target].quantization) is not None and quantization.method != "rtn"
        command += ["--num-samples", str(samples)] if calibrated else []
        done = subprocess.run([*command, "--no-verify"], stdout=sys.stderr, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            return (
                "not made: " + (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[-1]
            )
    return ""


def measure(folder: Path, passages: list[Passage], wanted: list[np.ndarray]) -> Row:
    """Run a package on the CPU provider."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    try:
        return Row(size, score(folder, passages, wanted))
    except Phi3OnnxError as error:
        return Row(size, problem=f"did not run: {error}")


def worse(row: Row, before: Row | None) -> list[str]:
    """Return what got worse, or went wrong."""
    if row.metrics is None:
        return [row.problem]
    if before is None or before.metrics is None:
        return []
    found = ["larger by more than 1 %"] if row.size > before.size * GROWTH else []
    larger = row.metrics.mean_kl > before.metrics.mean_kl * (1 + KL_NOISE) + 1e-9
    return [*found, *(["a larger KL"] if larger else [])]


def cells(row: Row | None) -> list[str]:
    """Return size, mean KL and top-token agreement as texts."""
    if row is None or row.metrics is None:
        return ["-", "-", "-"]
    return [f"{row.size / 1e6:.1f} MB", f"{row.metrics.mean_kl:.3g}", f"{100 * row.metrics.top1_agreement:.1f} %"]


def main() -> int:
    """Make and score all packages, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", help="checkpoint (default: the small real model)")
    parser.add_argument("--folder", type=Path, default=Path("targets-table"), help="of the packages [%(default)s]")
    parser.add_argument("--before", metavar="PYTHON", help="interpreter of an older state of the project")
    parser.add_argument("--target", nargs="+", choices=targets(), default=list(targets()), help="all, unless told")
    parser.add_argument("--text", type=Path, help="what to predict (default: the project's test text)")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=128, help="of calibrated targets [%(default)s]")
    args = parser.parse_args()
    source = args.source or fetch_small_model(cache_folder(), notify=lambda line: print(line, file=sys.stderr))
    states = {"now": (sys.executable, args.folder)}
    if args.before:
        states["before"] = (args.before, args.folder / "before")
    args.folder.mkdir(parents=True, exist_ok=True)
    if problem := make(sys.executable, source, REFERENCE, args.folder / REFERENCE, args.samples):
        print(f"{REFERENCE}: {problem}", file=sys.stderr)
        return 1
    text = args.text.read_text(encoding="utf-8") if args.text else corpus.text()
    passages = stretches(open_package(args.folder / REFERENCE), text, args.tokens, CONTEXT)
    wanted = list(package_logits(args.folder / REFERENCE, passages))
    headings = ["target", "size", "mean KL", "same top token"]
    headings += ["size before", "KL before", "same top token before"] if args.before else []
    print(f"| {' | '.join([*headings, 'outcome'])} |\n|{'---|' * (len(headings) + 1)}", flush=True)
    failed = False
    for name in args.target:
        rows: dict[str, Row] = {}
        for state, (python, folder) in states.items():
            folder.mkdir(exist_ok=True)
            problem = make(python, source, name, folder / name, args.samples)
            rows[state] = Row(problem=problem) if problem else measure(folder / name, passages, wanted)
        found = worse(rows["now"], rows.get("before"))
        failed |= bool(found)
        before = rows.get("before")
        columns = [name, *cells(rows["now"]), *(cells(before) if before else [])]
        remark = f" (before: {before.problem})" if before and before.problem else ""
        print(f"| {' | '.join([*columns, (', '.join(found) or 'ran') + remark])} |", flush=True)
    positions = sum(len(passage.ids) for passage in passages)
    print(f"\n{positions} positions, stretches of {CONTEXT} tokens, CPU provider.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
