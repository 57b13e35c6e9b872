"""The target for browsers in headless Chromium, in onnxruntime-web and transformers.js: on WebGPU, and by WASM.

    python tests/clients/webgpu.py [FOLDER [SOURCE]]

FOLDER (by default in ~/.cache) gets both libraries and the packages. SOURCE is a checkpoint; by default a tiny random
one. Chromium's own software GPU, SwiftShader, has no float16 (`shader-f16`), so the target's twin in float32 runs on
WebGPU there: the same operators and quantized weights. Needs Chromium and npm. Exit code 1 if a row differs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from phi3_onnx.configs import Target, find_target
from phi3_onnx.export import export
from phi3_onnx.runtime.engines.session import LogitsSession
from phi3_onnx.runtime.package import read_contract

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from web_client import visit  # noqa: E402  # beside this file

from tests.conftest import write_tiny  # noqa: E402

CLIENTS = {
    "webgpu_client.html": "onnxruntime-web@1.30.0",
    "webgpu_transformers_client.html": "@huggingface/transformers@4.3.1",
}
"""Pages, and the npm package that each is for."""
WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
STEPS, POSITIONS = 12, 8
SHAPE_NODES = 6
"""Nodes of shape arithmetic, which ONNX Runtime leaves to the CPU: the lengths from the attention mask."""
# Seen on tiny models and the small real one: 2e-5 in float32, by WASM and on WebGPU, and 0.004 in float16, whose last
# digit is 0.0005 of a value.
TOLERANCE = {"float32": 1e-4, "float16": 0.01}
"""Largest difference of logits, as a share of the largest logit."""


@dataclass(frozen=True)
class Row:
    """How one package did."""

    name: str
    passed: bool | None
    """None: it could not be tried here."""
    text: str


def main(work: Path, source: Path | None) -> int:
    modules = {page: node_modules(work, package) for page, package in CLIENTS.items()}
    if source is None:
        source = work / "tiny"
        shutil.rmtree(source, ignore_errors=True)
        write_tiny(source, "gqa")
    target = replace(find_target("web-int4"), file_bytes=1 << 30 if source.suffix == ".gguf" else 300_000)
    failed = False
    for row in rows(work, modules, source, target):
        failed |= row.passed is False
        print(
            f"{row.name:<36} { {True: 'same', False: 'DIFFERS', None: 'not run'}[row.passed]:<8} {row.text}", flush=True
        )
    return int(failed)


def rows(work: Path, modules: Mapping[str, Path], source: Path, target: Target) -> Iterator[Row]:
    twin = replace(target, io_dtype="float32")
    for made, provider in ((target, "wasm"), (twin, "wasm"), (twin, "webgpu"), (target, "webgpu")):
        task = prepare(work / f"webgpu-{made.io_dtype}", source, made)
        for page, folder in modules.items():
            library = CLIENTS[page].rpartition("@")[0].rpartition("/")[2]
            name = f"{library}, {made.io_dtype} on {provider}"
            sent = visit(f"{page}?provider={provider}", folder, task, flags=WEBGPU, seconds=600)
            yield judge(name, made.io_dtype, provider, sent, task)


def judge(name: str, dtype: str, provider: str, sent: dict[str, bytes], task: Path) -> Row:
    """Hold what a page sent against what plain ONNX Runtime gave on the CPU."""
    if "/error" in sent:
        problem = " ".join(sent["/error"].decode().split())
        stops = "requires f16 but the device does not support it" in problem
        return Row(name, None if stops else False, problem[:300])
    found, expected = json.loads(sent["/result"]), json.loads((task / "expected.json").read_text())
    logits, wanted = np.frombuffer(sent["/logits"], np.float32), np.fromfile(task / "expected.f32", np.float32)
    apart = float(np.abs(logits - wanted).max() / np.abs(wanted).max())
    same = sum(
        a == b for one, other in zip(found["tokens"], expected, strict=True) for a, b in zip(one, other, strict=True)
    )
    total = sum(map(len, expected))
    elsewhere = sum(count for where, count in found["placed"] if where != "WebGpuExecutionProvider")
    passed = same == total and apart <= TOLERANCE[dtype] and (provider == "wasm" or elsewhere <= SHAPE_NODES)
    placed = ", ".join(
        f"{count} nodes on {where.removesuffix('ExecutionProvider')}" for where, count in found["placed"]
    )
    where = f"; {placed or 'placement not told'}; {found['device']}" if provider == "webgpu" else ""
    return Row(
        name, passed, f"{same} of {total} tokens, logits within {apart:.2g} of the largest{where}; {found['version']}"
    )


def prepare(task: Path, source: Path, target: Target) -> Path:
    """Make a package, and write what plain ONNX Runtime gives on the CPU; return the folder."""
    package = task / "package"
    if (task / "expected.json").is_file():
        return task
    export(source, target, package, force=True)
    session, contract = LogitsSession(package), read_contract(package)
    prompts = [[(start + 37 * i) % contract.vocab_size for i in range(12)] for start in (5, 91, 300)]
    logits = [np.concatenate([rows for _, rows in session.logits(np.array(prompt))])[-POSITIONS:] for prompt in prompts]
    np.concatenate(logits).tofile(task / "expected.f32")
    content = {
        "prompts": prompts,
        "steps": STEPS,
        "end_tokens": [],
        "positions": POSITIONS,
        "type": target.io_dtype,
        "data": sorted(path.name for path in package.glob("*.data*")),
    }
    (task / "task.json").write_text(json.dumps(content), encoding="utf-8")
    tokens = [session.greedy(np.array(prompt), STEPS).tolist() for prompt in prompts]
    (task / "expected.json").write_text(json.dumps(tokens), encoding="utf-8")
    return task


def node_modules(work: Path, package: str) -> Path:
    """Return the folder with an npm package, fetched once, where tests/clients/run has it too."""
    folder = work / f"node-{re.sub('[@/]', '-', package)}"
    if not (folder / "node_modules" / package.rpartition("@")[0]).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(folder), package]
        # Its script would fetch libraries for CUDA.
        skip = {"ONNXRUNTIME_NODE_INSTALL": "skip", "ONNXRUNTIME_NODE_INSTALL_CUDA": "skip"}
        subprocess.run(command, check=True, env={**os.environ, **skip})
    return folder / "node_modules"


if __name__ == "__main__":
    named = [Path(argument).resolve() for argument in sys.argv[1:3]]
    default = Path.home() / ".cache/phi3-onnx-clients"
    sys.exit(main(named[0] if named else default, named[1] if len(named) > 1 else None))
