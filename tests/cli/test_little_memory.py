"""Too little memory: one line and exit code 1, wherever in a verb the system gives no more."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from phi3_onnx.configs.errors import is_out_of_memory

MEGABYTES = (120, 180, 260, 340)
"""From a limit at which numpy does not load to one at which the model does not fit."""
_FREE = """
import resource, sys
from phi3_onnx.cli import main
limit = int(sys.argv.pop(1)) << 20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
@pytest.mark.parametrize("megabytes", MEGABYTES)
@pytest.mark.parametrize("verb", ["generate", "export"])
def test_a_limit_of_memory_gives_one_line(
    verb: str, megabytes: int, tiny_package: Callable[..., Path], tmp_path: Path
) -> None:
    package = tiny_package("plain")
    arguments = ["generate", package, "-p", "a", "-n", "3"]
    if verb == "export":
        arguments = ["export", package, "-o", tmp_path / "new", "--no-verify"]
    done = subprocess.run(
        [sys.executable, "-c", _FREE, str(megabytes), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    if done.returncode < 0 or done.returncode == 0:
        return  # a library in C++ ended the process, or it was enough
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (1, 3)
    assert done.stderr.splitlines()[-1].startswith("phi3-onnx: "), done.stderr


_FAILING = """
import sys
_, name, error = sys.argv
sys.argv = ["phi3-onnx", "targets"]

class Failing:
    def find_spec(self, fullname, path=None, target=None):
        if fullname == name:
            raise eval(error)

sys.meta_path.insert(0, Failing())
sys.modules.pop(name, None)
from phi3_onnx.cli import main
main()
"""
_UNMAPPED = "ImportError('libffi.so.8: failed to map segment from shared object')"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("click", "MemoryError()"),
        ("phi3_onnx.configs", "MemoryError()"),
        ("phi3_onnx.configs.errors", "OSError(12, 'Cannot allocate memory')"),
        ("psutil", _UNMAPPED),
        ("phi3_onnx.cli.versions", _UNMAPPED),
    ],
)
def test_too_little_memory_to_start_is_one_line(name: str, error: str) -> None:
    done = subprocess.run([sys.executable, "-c", _FAILING, name, error], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "phi3-onnx: there is not enough memory to start\n"


def test_another_error_at_the_start_is_not_hidden() -> None:
    command = [sys.executable, "-c", _FAILING, "psutil", "ImportError('no such library')"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ImportError: no such library"


def test_what_says_that_memory_ran_out() -> None:
    failure = RuntimeError("the layer cannot be made")
    failure.__cause__ = MemoryError()
    assert is_out_of_memory(failure)
    assert is_out_of_memory(ImportError("libtorch_cpu.so: failed to map segment from shared object"))
    assert is_out_of_memory(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    assert not is_out_of_memory(ImportError("No module named 'torch'"))
