"""Run `phi3-onnx demo` and put what it prints into the README: `python docs/write_demo.py`, a minute or two.

`tests/test_readme.py` runs the demo again and holds the README against it.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from phi3_onnx.configs.store import HOME_VARIABLE, cache_folder

PAGE = Path(__file__).parents[1] / "README.md"
_START, _END = "<!-- demo: python docs/write_demo.py -->\n\n```text\n", "```\n"
_WIDTH = 100
_ROW = re.compile(r"^(\w+) +([-+.\de]+) +(?:(at (?:least|most) [-.\de]+) +(\w+))?")
_FETCHING = "Fetching "


def run() -> str:
    """Run the demo in an empty home, with the model from the cache if it is there; return what it prints."""
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "cache").symlink_to(_made(cache_folder()), target_is_directory=True)
        done = subprocess.run(
            [sys.executable, "-m", "phi3_onnx.cli", "demo"],
            env={**os.environ, HOME_VARIABLE: home},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=True,
            encoding="utf-8",
        )
        return shown(done.stdout, Path(home))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shown(output: str, home: Path) -> str:
    """Return the demo's output as the README shows it: short paths, long lines cut, nothing of the download."""
    text = output.replace(str(home / "cache"), "~/.cache/phi3-onnx").replace(str(home), "~/.local/share/phi3-onnx")
    lines = [line.rstrip() for line in text.splitlines() if not line.startswith(_FETCHING)]
    return "".join(f"{line if len(line) <= _WIDTH else line[: _WIDTH - 2] + ' …'}\n" for line in lines)


@dataclass(frozen=True)
class Row:
    """One row of the verification's table."""

    value: float
    limit: str
    outcome: str


def rows(output: str) -> dict[str, Row]:
    """Return the verification's rows in what the demo printed, by name."""
    found = (_ROW.match(line) for line in output.splitlines())
    return {match[1]: Row(float(match[2]), match[3] or "", match[4] or "") for match in found if match}


def in_readme() -> str:
    """Return the output that the README shows."""
    return PAGE.read_text(encoding="utf-8").partition(_START)[2].partition(_END)[0]


def with_output(page: str, output: str) -> str:
    """Return the page with the output in its place."""
    before, start, rest = page.partition(_START)
    _, end, after = rest.partition(_END)
    if not (start and end):
        raise ValueError(f"{PAGE} has no place for the output: a block after the comment {_START.splitlines()[0]!r}")
    return f"{before}{start}{output}{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_output(PAGE.read_text(encoding="utf-8"), run()), encoding="utf-8")
