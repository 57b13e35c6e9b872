"""Streams that are closed, full, or hold what is no text: one line, and no traceback."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")


def shell(command: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    script = f'"$0" -m phi3_onnx.cli {command}'
    call = ["sh", "-c", script, sys.executable, *(a if isinstance(a, bytes) else str(a) for a in arguments)]
    return subprocess.run(call, capture_output=True, check=False, timeout=120)


def one_line(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    assert not any("Traceback" in line for line in lines), done.stderr
    return lines[-1] if lines else ""


@POSIX
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", ['generate "$1" -n 3 -p a', 'chat "$1"', 'show "$1"', "targets", "--help"])
def test_a_full_disk_behind_stdout(command: str, tiny_package: Callable[..., Path]) -> None:
    done = shell(f"{command} > /dev/full <<END\nhi\nEND\n", tiny_package("plain"))
    assert done.returncode == 1
    assert one_line(done) == "phi3-onnx: cannot read or write: No space left on device"


@POSIX
def test_a_closed_stdin(tiny_package: Callable[..., Path]) -> None:
    done = shell('chat "$1" <&-', tiny_package("plain"))
    one_line(done)
    assert done.returncode == 0


@POSIX
def test_bytes_that_are_no_text(tiny_package: Callable[..., Path]) -> None:
    done = shell('generate "$1" -n 2 -p "$2"', tiny_package("plain"), b"a\xffb")
    assert done.returncode == 2
    assert "the text is not valid Unicode (U+DCFF at character" in one_line(done)


@POSIX
def test_half_characters_in_json_lines(tiny_package: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_text('{"prompt": "a\\ud800b", "max_tokens": 2}\n', encoding="utf-8")
    done = shell('generate "$1" --jsonl "$2"', tiny_package("plain"), tmp_path / "requests.jsonl")
    assert "the text is not valid Unicode (U+D800" in (done.stdout + done.stderr).decode()
    one_line(done)
