"""The data file filled by processes, as for large models: the same bytes as by threads, nothing left when it fails."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from phi3_onnx.configs import OutputError, SourceError, find_target
from phi3_onnx.export import export, open_checkpoint
from phi3_onnx.export.sources.checkpoint import Checkpoint
from phi3_onnx.export.weights.data_file import DataFile
from phi3_onnx.export.weights.fill import Tally, filling
from phi3_onnx.export.weights.layout import plan_layout


@pytest.fixture
def by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3_onnx.export.weights.fill._WORTH_PROCESSES", 0)
    monkeypatch.setattr("phi3_onnx.export.weights.fill.PIECE_BYTES", 1 << 14)  # several pieces a tensor


def no_workers_left() -> bool:
    """Whether all of loky's processes end; its resource tracker stays as long as this one does."""
    workers = [child for child in psutil.Process().children() if "LokyProcess" in " ".join(child.cmdline())]
    return not psutil.wait_procs(workers, timeout=10)[1]


def test_processes_write_what_threads_write(
    tiny: Callable[..., Path], tiny_package: Callable[..., Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    threads = tiny_package("gqa", "cpu-int4-rtn")
    request.getfixturevalue("by_processes")
    processes = export(tiny("gqa"), "cpu-int4-rtn", tmp_path / "package")
    for name in ("model.onnx", "model.onnx.data"):
        assert (processes / name).read_bytes() == (threads / name).read_bytes()
    assert no_workers_left()


@pytest.mark.usefixtures("by_processes")
def test_errors_of_a_process_are_the_exports(tiny: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = tiny("plain", dtype="bfloat16", seed=3)
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2:] = b"\xc0\x7f"  # NaN
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in checkpoint.iterdir():
        (damaged / path.name).write_bytes(content if path == weights else path.read_bytes())
    with pytest.raises(SourceError, match="holds NaN"):
        export(damaged, "cpu-int4-rtn", tmp_path / "package")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]


@dataclass(frozen=True)
class EndsItsProcess:
    """A checkpoint whose reader is killed, as the system does when memory runs out."""

    inner: Checkpoint

    @property
    def config(self) -> object:
        return self.inner.config

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        if name.endswith("down_proj.weight"):
            os._exit(9)
        return self.inner.read(name, rows)


def fill_all(checkpoint: Checkpoint, folder: Path, then: Callable[[], None] = lambda: None) -> None:
    target = find_target("cpu-int4-rtn")
    data = DataFile(folder, plan_layout(checkpoint.config, target))
    data.create()
    with filling(data, checkpoint, target, list(checkpoint.config.tensor_shapes()), Tally(data, print)) as under_way:
        then()
        under_way.finish()


@pytest.mark.usefixtures("by_processes")
def test_a_killed_process_is_an_error_and_not_a_hang(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="ended from outside"):
        fill_all(EndsItsProcess(open_checkpoint(tiny("plain"))), tmp_path)  # pyright: ignore[reportArgumentType]
    assert no_workers_left()


@pytest.mark.usefixtures("by_processes")
def test_ctrl_c_ends_the_processes(tiny: Callable[..., Path], tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_all(open_checkpoint(tiny("plain")), tmp_path, interrupt)
    assert no_workers_left()


SLOW = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from phi3_onnx.configs import find_target
from phi3_onnx.export import open_checkpoint
from phi3_onnx.export.weights import fill
from phi3_onnx.export.weights.data_file import DataFile
from phi3_onnx.export.weights.layout import plan_layout

@dataclass
class Slow:
    inner: object
    config: object
    def read(self, name, rows=None):
        print("reading", flush=True)
        time.sleep(600)

fill._WORTH_PROCESSES = 0
checkpoint, target = open_checkpoint(sys.argv[1]), find_target("cpu-int4-rtn")
data = DataFile(Path(sys.argv[2]), plan_layout(checkpoint.config, target))
data.create()
slow = Slow(checkpoint, checkpoint.config)
with fill.filling(data, slow, target, list(checkpoint.config.tensor_shapes()), fill.Tally(data, print)) as under_way:
    under_way.finish()
"""


def test_workers_end_with_a_parent_that_is_killed(tiny: Callable[..., Path], tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    semaphores = set(shared.iterdir()) if shared.is_dir() else set()
    script = tmp_path / "slow.py"
    script.write_text(SLOW, encoding="utf-8")
    command = [sys.executable, str(script), str(tiny("plain")), str(tmp_path)]
    parent = psutil.Popen(command, stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdout.readline().strip() == b"reading"
    family = parent.children(recursive=True)
    assert len(family) >= 2, "workers and a resource tracker"
    parent.kill()
    left = psutil.wait_procs(family, timeout=20)[1]
    for process in left:
        process.kill()
    assert not left
    parent.stdout.read()  # whoever reads what the export printed comes to its end
    parent.wait()
    assert not shared.is_dir() or not {path for path in set(shared.iterdir()) - semaphores if "loky" in path.name}


# What happened under a limit of memory: loky's thread that watches over the workers found none to end them with.
HELPLESS = """
import atexit
import os
import psutil
from loky.backend import utils

def no_memory(*arguments):
    raise MemoryError

under = list(under_way._executor._processes.values())
utils.psutil = type("helpless", (), {"Process": no_memory, "NoSuchProcess": psutil.NoSuchProcess})
os.kill(under[0].pid, 9)
try:
    under_way.finish()
finally:
    atexit.register(lambda: print("left:", [process.pid for process in under if process.is_alive()], flush=True))
"""


def test_an_export_ends_where_its_workers_cannot_be_ended_by_their_keeper(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    script = tmp_path / "helpless.py"
    script.write_text(SLOW.replace("under_way.finish()", textwrap.indent(HELPLESS, "    ").strip()), encoding="utf-8")
    command = [sys.executable, str(script), str(tiny("plain")), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0) as parent:
        try:
            output, errors = parent.communicate(timeout=60)  # the workers have these streams, too
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)
    assert b"was ended from outside" in errors
    assert parent.returncode == 1
    assert output.endswith(b"left: []\n")


def test_rows_that_nobody_wrote_are_noticed(tiny: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("plain"))
    target = find_target("cpu-int4-rtn")
    data = DataFile(tmp_path, plan_layout(checkpoint.config, target))
    data.create()
    tally = Tally(data, lambda *_: None)
    tensors = list(checkpoint.config.tensor_shapes())
    with filling(data, checkpoint, target, tensors[:-1], tally) as under_way:
        under_way.finish()
    with pytest.raises(OutputError, match=r"4 tensors were not written whole, the first is lm_head\.qweight"):
        tally.check()
