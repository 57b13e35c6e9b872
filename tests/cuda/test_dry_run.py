"""Packages on the CUDA wheels, without a GPU: see tests/cuda/run.

It takes gigabytes of wheels once and minutes each time, so it runs where the wheels are already there, or where
PHI3_ONNX_CUDA_DRY_RUN asks for it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from phi3_onnx.configs.store import cache_folder

RUN = Path(__file__).with_name("run")
# Settled before tests are given homes of their own.
CACHE = Path(os.environ.get("PHI3_ONNX_CUDA_CACHE") or cache_folder() / "cuda-dry-run").absolute()
SKIPPED = 77


def _reason() -> str | None:
    if sys.platform != "linux":
        return "the dry run on CUDA needs Linux"
    if not shutil.which("gcc"):
        return "the dry run on CUDA needs gcc"
    if not os.environ.get("PHI3_ONNX_CUDA_DRY_RUN") and not list(CACHE.glob("cuda13-*/installed")):
        return f"no CUDA wheels in {CACHE}: run tests/cuda/run once, or set PHI3_ONNX_CUDA_DRY_RUN=1"
    return None


needs_wheels = pytest.mark.skipif(_reason() is not None, reason=_reason() or "")


def dry_run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "PHI3_ONNX_CUDA_CACHE": str(CACHE), **variables}
    return subprocess.run(
        [str(RUN), *map(str, arguments)], capture_output=True, text=True, env=environment, check=False
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


@needs_wheels
def test_exported_graphs_run_on_cuda_alone(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    done = dry_run("--pair", "cuda13", "--kind", "gqa", "phi3-128k", "--json", rows)
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout
    found = rows_of(rows)
    assert [(row["kind"], row["target"]) for row in found] == [
        (kind, target) for kind in ("gqa", "phi3-128k") for target in ("cuda-fp16", "cuda-int4-rtn")
    ]
    for row in found:
        assert row["on_cuda"] >= 20
        assert row["copies"] == 0
        assert row["captures"] == 1


@needs_wheels
def test_an_operator_that_cuda_lacks_is_caught(tiny_package: Callable[..., Path], tmp_path: Path) -> None:
    package = tmp_path / "planted"
    shutil.copytree(tiny_package("gqa", "cuda-fp16"), package)
    model = ir.load(package / "model.onnx")
    ids = next(value for value in model.graph.inputs if value.name == "input_ids")
    uses = list(ids.uses())
    nots = [ir.node("BitwiseNot", [ids], name="planted"), ir.node("BitwiseNot", [], name="planted twice")]
    nots[1].resize_inputs(1)
    nots[1].replace_input_with(0, nots[0].outputs[0])
    for node, index in uses:
        node.replace_input_with(index, nots[1].outputs[0])
    model.graph.insert_before(model.graph[0], nots)
    ir.save(model, package / "model.onnx")
    rows = tmp_path / "rows.json"
    done = dry_run("--pair", "cuda13", "--package", package, "--json", rows)
    assert done.returncode == 1, done.stdout
    (row,) = rows_of(rows)
    assert any(problem.startswith("not on CUDA: BitwiseNot (planted)") for problem in row["problems"])
    assert row["copies"] > 0


def test_where_it_cannot_run_it_says_so(tmp_path: Path) -> None:
    done = dry_run(PATH=str(Path(sys.executable).parent) + ":" + str(_only_bash(tmp_path)))
    assert done.returncode == SKIPPED
    assert "SKIPPED, the dry run on CUDA was not made: gcc is not installed" in done.stderr


def _only_bash(folder: Path) -> Path:
    for tool in ("bash", "env", "dirname"):
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    return folder
