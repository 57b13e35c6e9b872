"""Trials: a verb is disturbed, what it left is checked, it runs again, and the end is compared."""

import ctypes
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .jobs import (
    Demo,
    Export,
    ExportByProcesses,
    HubProcess,
    Job,
    Pull,
    Push,
    PushToFolder,
    Quantize,
    Remove,
    write_wheel,
)
from .runner import LeftoverError, Ran, Trouble, apart, run
from .shim import Fault

_MODEL: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3}
_MS_NOSUID = 2
_FAULTS = {"before": Fault.KILL_BEFORE, "after": Fault.KILL_AFTER, "full": Fault.FULL, "read": Fault.UNREADABLE}


@dataclass
class Tally:
    """What happened to one verb."""

    trials: int = 0
    disturbed: Counter[str] = field(default_factory=Counter)
    """How often each kind of disturbance was tried."""
    ended: Counter[str] = field(default_factory=Counter)
    """How the disturbed runs ended."""
    failures: list[str] = field(default_factory=list)


class Bench:
    """Checkpoints, packages, a hub and the verbs to disturb."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self._hub = HubProcess()
        os.environ["HF_ENDPOINT"] = self._hub.endpoint
        os.environ["PHI3_ONNX_HOME"] = str(folder / "home")
        self.jobs = self._make(names)
        self._usual: dict[str, Ran] = {}
        if threading.active_count() != 1:
            raise RuntimeError(f"{threading.enumerate()} run in the process that is to be forked")

    def close(self) -> None:
        self._hub.stop()

    def _make(self, names: Sequence[str]) -> dict[str, Job]:
        _import_all()
        new, old = self.folder / "checkpoint", self.folder / "checkpoint-before"
        gguf = self.folder / "model.gguf"
        apart(lambda: _write_models(new, old, gguf))
        _trace_once(new, ["cpu-int4-rtn", *(["cpu-int4-awq"] if "quantize" in names else [])])
        rtn, earlier = self.folder / "package", self.folder / "package-before"
        for checkpoint, package in ((new, rtn), (old, earlier)):
            self._do("export", checkpoint, "-t", "cpu-int4-rtn", "-o", package, "--no-verify")
        self._hub.start(rtn)
        makers: dict[str, Callable[[Path], Job]] = {
            "export": lambda base: Export(base, earlier, new),
            "export-processes": lambda base: ExportByProcesses(base, earlier, new),
            "quantize": lambda base: Quantize(base, earlier, new),
            "pull": lambda base: Pull(base, earlier, self.folder / "hub-cache"),
            "push": lambda base: Push(base, rtn, self._hub.endpoint),
            "push-dry-run": lambda base: PushToFolder(base, rtn),
            "demo": lambda base: Demo(base, earlier),
            "rm": lambda base: Remove(base, earlier),
        }
        if "demo" in names:
            write_wheel(self.folder / "wheels", gguf)
        found: dict[str, Job] = {}
        for name in names:
            (self.folder / name).mkdir()
            found[name] = makers[name](self.folder / name)
        return found

    def _do(self, *arguments: str | Path) -> None:
        root = self.folder / "work" / "root"
        root.mkdir(parents=True, exist_ok=True)
        ran = run(arguments, root)
        if ran.code:
            raise RuntimeError(str(ran))

    def usual(self, job: Job) -> Ran:
        """Return the run of a verb that nothing disturbs, which its other runs are compared with."""
        if job.name not in self._usual:
            job.prepare()
            ran = run(job.arguments, job.root, environment=job.environment)
            if ran.code:
                raise RuntimeError(str(ran))
            job.learn()
            job.check_finished()
            self._usual[job.name] = ran
        return self._usual[job.name]

    def trial(self, job: Job, random: random.Random, kinds: Sequence[str], tally: Tally) -> None:
        """Disturb a verb once to three times, run it again, and note what was wrong in the tally."""
        usual = self.usual(job)
        job.prepare()
        tally.trials += 1
        story: list[str] = []
        try:
            for _ in range(random.choice((1, 1, 2, 3))):
                kind = random.choice([kind for kind in kinds if _fits(kind, job, usual)])
                tally.disturbed[kind] += 1
                if kind == "disk":
                    self._on_small_disk(job, random, tally, story)
                    return
                self._disturbed(job, _trouble(kind, usual, random), tally, story)
            after = run(job.again, job.root, environment=job.environment)
            story.append(str(after))
            _require_done(after)
            # A machine that others work on gets faster and slower: kills that come too late disturb nothing.
            self._usual[job.name] = replace(usual, seconds=(usual.seconds + after.seconds) / 2)
            job.check_finished()
        except (AssertionError, OSError) as problem:
            tally.failures.append(f"{problem}\n  " + "\n  ".join(story))

    def _disturbed(self, job: Job, trouble: Trouble, tally: Tally, story: list[str]) -> None:
        ran = run(job.arguments, job.root, trouble, environment=job.environment)
        story.append(f"[{trouble}] {ran}")
        tally.ended["killed" if ran.killed else "done" if ran.code == 0 else f"code {ran.code}"] += 1
        _require_a_line(ran, trouble)
        job.check_interrupted()
        if ran.code == 0:
            if job.name == "rm":
                job.prepare()
            elif job.name != "push-dry-run":
                job.check_finished()

    def _on_small_disk(self, job: Job, random: random.Random, tally: Tally, story: list[str]) -> None:
        """Run a verb on a real disk that is too small for what it writes at some point, then on one with room."""
        libc = ctypes.CDLL(None, use_errno=True)
        shutil.rmtree(job.root)
        job.root.mkdir()
        kilobytes = 64 << 10
        options = f"size={kilobytes}k".encode()
        if libc.mount(b"tmpfs", os.fsencode(job.root), b"tmpfs", _MS_NOSUID, options):
            tally.ended["no tmpfs here"] += 1
            job.prepare()
            return
        try:
            _prepare_inside(job)
            ballast = job.root / "home" / "ballast"
            ballast.parent.mkdir(exist_ok=True)
            free = shutil.disk_usage(job.root).free
            needed = max(self._usual[job.name].counts.get(Fault.FULL, 0), 1 << 16)
            left = random.randrange(int(needed * 1.5))
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(free - left, 4096))
            self._disturbed(job, Trouble(at=left), tally, story)
            ballast.unlink()
            if not any(ballast.parent.iterdir()):
                ballast.parent.rmdir()
            after = run(job.again, job.root, environment=job.environment)
            story.append(str(after))
            _require_done(after)
            job.check_finished()
        finally:
            if libc.umount2(os.fsencode(job.root), 2):
                raise OSError(ctypes.get_errno(), f"{job.root} cannot be unmounted")


def _prepare_inside(job: Job) -> None:
    """Do what `Job.prepare` does, in a folder that is a disk and so cannot be replaced."""
    away = job.base / "prepared"
    root, job.root = job.root, away
    try:
        job.prepare()
    finally:
        job.root = root
    shutil.copytree(away, root, dirs_exist_ok=True)
    shutil.rmtree(away)


def _fits(kind: str, job: Job, usual: Ran) -> bool:
    """Whether a verb can be disturbed so: `push` changes no file of its own, `rm` fills no disk."""
    if kind in ("before", "after"):
        return usual.counts.get(_FAULTS[kind], 0) > 0
    return job.writes or kind not in ("disk", "full")


def _trouble(kind: str, usual: Ran, random: random.Random) -> Trouble:
    """Return a disturbance of a kind at a random moment of a run that usually goes so."""
    if kind == "time":
        return Trouble(after=random.uniform(0, 1.1 * usual.seconds))
    if kind == "memory":
        return Trouble(memory=int(2 ** random.uniform(20, 31)))
    fault = _FAULTS[kind]
    most = usual.counts.get(fault, 0)
    return Trouble(fault=fault, at=random.randint(1, most + 1))


def _require_a_line(ran: Ran, trouble: Trouble) -> None:
    """Raise AssertionError where a run ended with more than one line about what is wrong."""
    if trouble.memory is not None and ran.code in (-6, -11, -9, 127):
        return  # libraries in C++, or the loader, end a process that gets no memory; what matters is what it leaves
    killing = trouble.after is not None or trouble.fault in (Fault.KILL_BEFORE, Fault.KILL_AFTER)
    if ran.killed or ran.code == 0:
        if ran.killed and not killing:
            raise LeftoverError("a run was killed that nobody killed")
        return
    lines = [line for line in ran.output.splitlines() if line.startswith("phi3-onnx: ")]
    if "Traceback" in ran.output or len(lines) != 1 or ran.code not in (1, 2, 3):
        raise LeftoverError(f"{trouble}: expected one line and exit code 1, got {ran.code} and {len(lines)} lines")


def _require_done(ran: Ran) -> None:
    if ran.code:
        raise LeftoverError(f"the run that followed failed with {ran.code}")


def _write_models(new: Path, old: Path, gguf: Path) -> None:
    from conftest import write_tiny
    from gguf_files import write_gguf

    write_tiny(new, "llama", **_MODEL)
    write_tiny(old, "llama", seed=1, **_MODEL)
    write_gguf(gguf, new, "llama")


def _import_all() -> None:
    """Import what the verbs import when they run, so that a forked process has it."""
    import importlib

    import phi3_onnx.cli as cli

    modules = [f"phi3_onnx.cli.{module}" for module in cli.VERBS.values()]
    modules += ["phi3_onnx.export", "phi3_onnx.export.graph.build", "phi3_onnx.export.graph.decode"]
    modules += ["phi3_onnx.export.lint.check", "phi3_onnx.export.package.upload", "phi3_onnx.evaluate.card"]
    modules += ["phi3_onnx.evaluate.parity.verify", "phi3_onnx.quantize.method", "phi3_onnx.runtime", "loky"]
    modules += ["huggingface_hub", "onnxruntime", "transformers", "numpy.testing"]
    for module in modules:
        importlib.import_module(module)
    import torch
    import tqdm

    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0  # it watches by a thread, and a process with threads must not be forked


def _trace_once(checkpoint: Path, targets: Sequence[str]) -> None:
    """Trace the graphs of a checkpoint's shape, and have forked processes take them instead of tracing them anew."""
    from phi3_onnx.configs import find_target
    from phi3_onnx.export import open_checkpoint
    from phi3_onnx.export.graph import build
    from phi3_onnx.export.weights import fill
    from phi3_onnx.export.weights.blocks import fit_blocks

    config = open_checkpoint(checkpoint).config
    graphs = {}
    for name in targets:
        target = fit_blocks(config, find_target(name))[0]
        graphs[str(target.quantization), target.name] = build.build_graph(config, target)
    real = build.build_graph

    def traced(config: object, target: object) -> object:
        found = graphs.get((str(target.quantization), target.name))  # pyright: ignore[reportAttributeAccessIssue]
        return found or real(config, target)  # pyright: ignore[reportArgumentType]

    build.build_graph = traced  # pyright: ignore[reportAttributeAccessIssue]
    by_processes = fill.fills_by_processes
    fill.fills_by_processes = lambda config: "FAULTS_PROCESSES" in os.environ or by_processes(config)
    fill.PIECE_BYTES = 1 << 15
