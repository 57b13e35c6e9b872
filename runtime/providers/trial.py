"""Run a tiny model on an execution provider, to know whether it really runs and not only that it is built in.

A provider with a broken driver can take the whole process with it, so `try_provider` runs the trial in one of its own,
of which this module is the main one.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from ...configs import Phi3OnnxError
from ...configs.errors import first_line
from . import plugins
from .imports import import_onnxruntime, load_libraries
from .names import ort_name

_SECONDS = 120
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


@dataclass(frozen=True)
class ProviderTrial:
    """How a provider did."""

    provider: str
    """By this project's name."""
    runs: bool
    reason: str
    """Why it does not run; what was shown where it does."""


def try_provider(provider: str) -> ProviderTrial:
    """Run the tiny model on a provider, in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, provider]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return ProviderTrial(provider, False, f"no answer within {_SECONDS} s")
    try:
        result = json.loads(done.stdout.splitlines()[-1])
        return ProviderTrial(provider, result["runs"], result["reason"])
    except (IndexError, ValueError, KeyError):
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        return ProviderTrial(provider, False, f"the process that tried it ended with {how}")


def run_trial(provider: str) -> ProviderTrial:
    """Run the tiny model on a provider, in this process."""
    try:
        ort = import_onnxruntime()
        wanted = ort_name(provider)
        if wanted not in ort.get_available_providers():
            return ProviderTrial(provider, False, f"the installed onnxruntime {ort.__version__} is built without it")
        load_libraries(provider)
        options = ort.SessionOptions()
        options.log_severity_level = 4  # the reason is returned, not printed
        if provider != "cpu":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if wanted in plugins.providers():
            plugins.add_to(options, ort, wanted, None)
            session = ort.InferenceSession(matmul_model(), options)
        else:
            gpu = {"device_id": "0"} if provider == "dml" else {}  # without it DirectML asks for a newer Windows
            session = ort.InferenceSession(matmul_model(), options, providers=[(wanted, gpu)])
        if session.get_providers()[0] != wanted:
            return ProviderTrial(provider, False, "it did not start; its libraries or its driver are missing")
        (result,) = session.run(None, {"a": np.asarray([[1, 2], [3, 4]], dtype=np.float32)})
    except Phi3OnnxError as error:
        return ProviderTrial(provider, False, str(error))
    except Exception as error:  # onnxruntime's own errors have no common base but this
        return ProviderTrial(provider, False, _PREFIX.sub("", first_line(error)))
    expected = [[7, 10], [15, 22]]
    if not np.array_equal(result, expected):
        return ProviderTrial(provider, False, f"it computes wrongly: {result.tolist()} instead of {expected}")
    return ProviderTrial(provider, True, f"a matrix product came out right on onnxruntime {ort.__version__}")


def matmul_model() -> bytes:
    """Return an ONNX model that multiplies a float32 [2, 2] matrix by itself: `a` to `b`.

    It is a file since the package `onnx` belongs to the export extra; tests/runtime/providers/test_trial.py makes it.
    """
    return files(__package__ or "phi3_onnx.runtime.providers").joinpath("matmul.onnx").read_bytes()


def main(arguments: Sequence[str]) -> None:
    """Try the provider that is named, and print the result as a line of JSON."""
    trial = run_trial(arguments[0])
    print(json.dumps({"runs": trial.runs, "reason": trial.reason}))


if __name__ == "__main__":
    main(sys.argv[1:])
