"""The real server in a process of its own, as users start it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(*arguments: str | Path) -> Iterator[str]:
    """Run `phi3-onnx serve` on a free port; gives its address."""
    command = [sys.executable, "-m", "phi3_onnx.cli", "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines: list[str] = []
        try:
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"ready at (http://\S+)", line):
                    yield found[1]
                    break
            else:
                raise AssertionError("".join(lines))
        finally:
            process.terminate()
            process.wait(60)
