"""What each client of the suite tries, written down as `{check: "passed" or why not}`. Needs Python alone."""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

URL, RESULT = sys.argv[1], Path(sys.argv[2])
"""The server's address, and where the results go."""
MODEL = "small"
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,  # small models invent more until their tokens run out
}
ASK = [{"role": "user", "content": "What is the capital of France?"}]
results: dict[str, str] = {}


def check(protocol: str, name: str) -> Callable[[Callable[[], None]], None]:
    """Run a function at once, as one check of a protocol, and write down what came of it."""

    def run(function: Callable[[], None]) -> None:
        try:
            function()
            results[f"{protocol}: {name}"] = "passed"
        except Exception as error:
            traceback.print_exc()
            results[f"{protocol}: {name}"] = _shortened(f"{type(error).__name__}: {error}")
        RESULT.write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(f"{protocol}: {name}: {results[f'{protocol}: {name}']}", flush=True)

    return run


def _shortened(text: str) -> str:
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"


@contextmanager
def refused(kind: type[Exception], words: str) -> Iterator[None]:
    """Take an error of a kind that says these words, and fail where there is none."""
    try:
        yield
    except kind as error:
        if words not in str(error):
            raise AssertionError(f"it does not say {words!r}: {error}") from error
    else:
        raise AssertionError("it was answered")


def home() -> Path:
    """Return a new folder for what a program keeps and works on."""
    return Path(tempfile.mkdtemp(prefix="home-", dir=RESULT.parent))


def command(folder: Path, program: str, *words: str, **variables: str) -> str:
    """Run a program of this environment in a folder, which is its home, too; return what it printed.

    It sees no variables of this process's but PATH and LANG.

    Raises:
        AssertionError: it failed; the message is the end of what it printed.

    """
    environment = Path(sys.executable).parents[1]
    places = [environment / "bin", environment / "node_modules" / ".bin"]
    found = next(place / program for place in places if (place / program).exists())
    path = os.pathsep.join([*map(str, places), os.environ["PATH"]])
    done = subprocess.run(
        [str(found), *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": path, "LANG": "C.UTF-8", "HOME": str(folder), **variables},
        stdin=subprocess.DEVNULL,
        timeout=900,
        check=False,
    )
    print(done.stdout, done.stderr, sep="\n")
    assert done.returncode == 0, f"exit code {done.returncode}: {(done.stdout + done.stderr)[-3000:]}"
    return done.stdout
