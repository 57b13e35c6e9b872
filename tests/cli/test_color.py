"""Colours, on a real terminal: there where we colour, and nowhere with NO_COLOR; a file gets them with FORCE_COLOR."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from phi3_onnx.evaluate.parity import corpus

from .conftest import Run

pty = pytest.importorskip("pty", reason="Windows has no pseudo terminals of this kind")

Make = Callable[..., Path]

HIDE_CURSOR = "\x1b[?25l"
COLOR = re.compile(r"\x1b\[[0-9;]*m")
"""Select Graphic Rendition: colours, bold and the end of both; what moves the cursor is something else."""


def variables(**changes: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**clean, "TERM": "xterm-256color", "PYTHONWARNINGS": "ignore", **changes}


def on_terminal(*arguments: object, typed: str = "", **changes: str) -> tuple[int, str]:
    """Run the command line on a pseudo terminal; return its exit code, and all that it wrote there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "phi3_onnx.cli", *map(str, arguments)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=variables(**changes)) as process:
        os.close(theirs)
        os.write(ours, typed.encode())
        written = b"".join(_read(ours))
    os.close(ours)
    return process.returncode, written.decode()


def _read(descriptor: int) -> Iterator[bytes]:
    with suppress(OSError):  # how Linux says that the other side is closed
        while block := os.read(descriptor, 1 << 16):
            yield block


BOTH = pytest.mark.parametrize(("no_color", "colored"), [("", True), ("1", False)])


@BOTH
def test_the_bars_of_export(tiny: Make, tmp_path: Path, no_color: str, colored: bool) -> None:
    arguments = ("export", tiny("plain"), "-o", tmp_path / "made", "--no-verify")
    code, written = on_terminal(*arguments, NO_COLOR=no_color)
    assert code == 0, written
    assert "writing" in written and HIDE_CURSOR in written  # the bars are there both times
    assert bool(COLOR.search(written)) is colored, written


@BOTH
def test_the_table_of_verify(tiny_package: Make, no_color: str, colored: bool) -> None:
    package = tiny_package("plain", "cpu-int4-rtn")
    arguments = ("verify", package, "--target", "cpu-fp32", "--steps", 2, "--no-record")
    code, written = on_terminal(*arguments, NO_COLOR=no_color)
    assert code == 1, written
    assert "verifying" in written and HIDE_CURSOR in written
    assert "ok" in written and "FAILED" in written
    assert ("\x1b[32mok\x1b[0m" in written and "\x1b[1;31mFAILED\x1b[0m" in written) is colored
    assert bool(COLOR.search(written)) is colored, written


@BOTH
def test_the_table_of_matrix(tiny: Make, tiny_package: Make, tmp_path: Path, no_color: str, colored: bool) -> None:
    shutil.copytree(tiny_package("plain"), tmp_path / "packages/cpu-fp32")
    options = ("-t", "cpu-fp32", "-p", "cpu", "--steps", 2, "--no-speed", "-o", tmp_path / "packages")
    code, written = on_terminal("matrix", tiny("plain"), *options, NO_COLOR=no_color)
    assert code == 0, written
    assert ("\x1b[32mpass\x1b[0m" in written) is colored and "pass" in written
    assert bool(COLOR.search(written)) is colored, written


@pytest.mark.parametrize("verb", ["generate", "chat", "evaluate", "show", "doctor", "targets"])
def test_the_other_verbs_have_none(tiny_package: Make, verb: str) -> None:
    options = {
        "generate": (tiny_package("plain"), "-p", "Hi", "-n", 2),
        "chat": (tiny_package("plain"), "-n", 2),
        "evaluate": (tiny_package("plain"), "--no-reference", "--max-tokens", 20),
        "show": (tiny_package("plain"), "--tensors"),
    }
    typed = "Hi\n/show\n/bye\n" if verb == "chat" else ""
    code, written = on_terminal(verb, *options.get(verb, ()), typed=typed, NO_COLOR="1")
    assert code == 0, written
    assert not COLOR.search(written), written


def test_an_error_with_a_traceback_has_none() -> None:
    code, written = on_terminal("--debug", "show", "no-such-package", NO_COLOR="1")
    assert code == 1 and "Traceback" in written
    assert not COLOR.search(written), written


def test_the_log_of_onnx_runtime_is_silent_where_it_would_have_colors(tiny_package: Make, tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(tiny_package("plain"), package)
    spoil(package)
    arguments = ("evaluate", package, "--no-reference", "--max-tokens", 20)
    code, written = on_terminal(*arguments, NO_COLOR="1")
    assert code == 1
    # The reason is in the error all the same.
    assert "the graph fails on tokens 0 to 19" in written and "Reshape" in written
    assert not COLOR.search(written), written
    assert "[E:onnxruntime:" in on_terminal(*arguments)[1]


def spoil(package: Path) -> None:
    """Have the graph end in an operator that loads and then fails."""
    onnx = pytest.importorskip("onnx")
    (package / "phi3_onnx.json").unlink()  # whose sums would not fit
    model = onnx.load(package / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        node.output[:] = ["before" if name == "logits" else name for name in node.output]
    shape = onnx.numpy_helper.from_array(np.array([7, 11, 13]), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.append(onnx.helper.make_node("Reshape", ["before", "shape"], ["logits"]))
    onnx.save(model, package / "model.onnx")


@pytest.mark.parametrize(
    ("changes", "colored"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_a_file_has_colors_when_they_are_forced(
    run: Run, tiny_package: Make, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], colored: bool
) -> None:
    monkeypatch.setattr(corpus, "TOKENS", 300)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **changes}.items():
        monkeypatch.setenv(name, value)
    ran = run("verify", tiny_package("plain"), "--steps", 2, "--no-record")
    assert bool(COLOR.search(ran.out)) is colored
    assert "\x1b" not in ran.err  # no line changes in a file, whatever is forced
    rows = [COLOR.sub("", line).split()[0] for line in ran.out.splitlines()[1:12]]
    assert rows[0] == "token_ids" and rows[-1] == "greedy_agreement"  # none is folded
