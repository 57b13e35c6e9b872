"""The real server in a process of its own, as users start it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Started(NamedTuple):
    """A server that is ready."""

    process: subprocess.Popen[str]
    address: str
    """Such as `http://127.0.0.1:40123`."""
    said: list[str]
    """Its lines on stderr up to that it is ready; later ones wait in the process's stderr."""


def start(*arguments: str | Path) -> Started:
    """Start `phi3-onnx serve` on a free port, and wait until it is ready."""
    command = [sys.executable, "-m", "phi3_onnx.cli", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"ready at (http://\S+)", line):
            return Started(process, found[1], said)
    process.wait(60)
    raise AssertionError("".join(said))


@contextmanager
def serving(*arguments: str | Path) -> Iterator[str]:
    """Run `phi3-onnx serve` on a free port; gives its address."""
    process, address, _ = start(*arguments)
    try:
        yield address
    finally:
        process.terminate()
        process.communicate(timeout=60)  # a full pipe would keep it from ending
