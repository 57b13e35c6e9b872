"""Hostile files, by the thousand: whatever one holds, it is read, or refused with one line, within bounds.

CI reads some dozens of each kind; `PHI3_ONNX_FUZZ=5000` before pytest reads five thousand. What once broke a reader is
kept in `tests/data/fuzz`, in a folder for each kind, and is read each time.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gguf_files import write_gguf
from hypothesis import HealthCheck, given, settings
from phi3_onnx.configs import Phi3OnnxError, target

from .readers import READERS, REQUEST, World

EXAMPLES = int(os.environ.get("PHI3_ONNX_FUZZ", "40"))
CORPUS = Path(__file__).parents[1] / "data" / "fuzz"
MOST_SECONDS = 10
MOST_BYTES = 10**9
LONGEST_LINE = 2000
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


class EndlessError(BaseException):
    """A reader took longer than it may. Not an `Exception`: no reader may take it for one of its own."""


@pytest.fixture(scope="module")
def world(
    tiny: Callable[..., Path],
    tiny_package: Callable[..., Path],
    adapter_of: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    folder = tmp_path_factory.mktemp("fuzz")
    package = Path(shutil.copytree(tiny_package("longrope"), folder / "package"))
    (package / "requests.jsonl").write_text(json.dumps(REQUEST), encoding="utf-8")
    (package / "texts.jsonl").write_text(json.dumps({"messages": REQUEST["messages"]}), encoding="utf-8")
    shutil.copyfile(Path(target.__file__).parent / "targets" / "cpu-int4-awq.toml", package / "target.toml")
    foreign = Path(shutil.copytree(package, folder / "foreign"))
    (foreign / "phi3_onnx.json").unlink()
    checkpoint = Path(shutil.copytree(tiny("longrope"), folder / "checkpoint"))
    adapter = Path(shutil.copytree(adapter_of(tiny("longrope"), target_modules=["o_proj"]), folder / "adapter"))
    return World(checkpoint, package, foreign, adapter, write_gguf(folder / "model.gguf", checkpoint))


@contextmanager
def bounds() -> Iterator[None]:
    """Hold what is inside to the time and the memory that a file may take."""
    before = _peak_bytes()

    def stop(*_: Any) -> None:
        raise EndlessError

    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, stop)
        signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        if sys.platform != "win32":
            signal.alarm(0)
    assert _peak_bytes() - before < MOST_BYTES, "it took more memory than a file may"


def _peak_bytes() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read(kind: str, content: bytes, world: World) -> None:
    """Read a file of a kind that holds this; only our own errors come through, each a line that can be printed."""
    reader = READERS[kind]
    path = reader.place(world)
    valid = path.read_bytes()
    path.write_bytes(content)
    try:
        with bounds():
            reader.read(path, world)
    except Phi3OnnxError as error:
        line = str(error)
        assert line.strip() and len(line) < LONGEST_LINE + 2 * len(str(path)), f"{len(line)} characters: {line[:200]}"
        assert "\n" not in line.strip(), line[:500]
    finally:
        path.write_bytes(valid)


@pytest.mark.parametrize("kind", READERS)
def test_the_valid_file_is_read(kind: str, world: World) -> None:
    reader = READERS[kind]
    reader.read(reader.place(world), world)


@pytest.mark.parametrize("kind", READERS)
def test_whatever_a_file_holds_is_one_line(kind: str, world: World) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=SLOW)
    @given(content=READERS[kind].contents(READERS[kind].place(world)))
    def each(content: bytes) -> None:
        read(kind, content, world)

    each()


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_once_broke_a_reader(path: Path, world: World) -> None:
    read(path.parent.name, path.read_bytes(), world)
