"""Replay a package's self-test on every engine and provider here, whatever was proven before.

A provider with a broken driver can take the whole process with it, so each replay runs in a process of its own, of
which this module is the main one.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ...configs import Phi3OnnxError
from ...configs.manifest import SELF_TEST_NAME
from ..engines.genai import load_engine
from ..engines.packed import DECODE_NAME
from ..engines.packed_engine import load_packed_engine
from ..package import Package, open_package
from ..providers.doctor import Problem, Severity
from .record import keep_proof, key_of
from .replay import replay
from .self_test import SelfTest, read_self_test

_SECONDS = 600
"""How long loading and replaying may take: a large package comes from a slow disk, and a GPU compiles its kernels."""


@dataclass(frozen=True)
class PackageTrial:
    """How a package did on one provider."""

    provider: str
    """By this project's name."""
    engine: str
    """`genai`, or `together` for the package's `decode.onnx`."""
    passed: bool | None
    """None: it could not be loaded there."""
    reason: str
    """The figures, or why there are none."""


def try_package(package: Package, providers: Sequence[str], device: int | None = None) -> Iterator[PackageTrial]:
    """Replay the self-test of a package on providers, each in a process of its own.

    Args:
        package: one that has a self-test.
        providers: those that run here, by this project's names.
        device: number of the GPU.

    """
    for provider in providers:
        yield _in_a_process(package.folder, provider, "genai", device)
        if provider == package.made_for == "cpu" and (package.folder / DECODE_NAME).is_file():
            yield _in_a_process(package.folder, provider, "together", device)


def package_problems(package: Package, trials: Sequence[PackageTrial]) -> list[Problem]:
    """Return what is wrong with a package here, with what to do about it.

    Args:
        package: the package.
        trials: how its self-test went; none where it has no self-test.

    """
    if not (package.folder / SELF_TEST_NAME).is_file():
        fix = f"make one: phi3-onnx verify {package.folder}" + ("" if package.manifest else " --reference CHECKPOINT")
        return [Problem("warning", f"{package.name} has no self-test, so nothing is proven", fix)]
    severity: Severity = "warning" if any(trial.passed for trial in trials) else "error"
    found: list[Problem] = []
    for trial in trials:
        where = f"on {trial.provider} by {trial.engine}"
        if trial.passed is None and (severity == "error" or trial.provider in ("cpu", package.made_for)):
            found.append(
                Problem(severity, f"{package.name} cannot run {where}: {trial.reason}", "take another --provider")
            )
        elif trial.passed is False:
            what = f"{package.name} is computed wrongly {where}: {trial.reason}"
            found.append(Problem(severity, what, "take another --provider or version"))
    return found


def _in_a_process(folder: Path, provider: str, engine: str, device: int | None) -> PackageTrial:
    command = [sys.executable, "-m", __spec__.name, str(folder), provider, engine]
    command += [] if device is None else [str(device)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return PackageTrial(provider, engine, None, f"no answer within {_SECONDS} s")
    try:
        # A provider's libraries may print more when the process ends.
        result = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
        return PackageTrial(provider, engine, result["passed"], result["reason"])
    except (StopIteration, ValueError, KeyError, TypeError):
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        return PackageTrial(provider, engine, None, f"the process that tried it ended with {how}")


def run_trial(folder: Path, provider: str, engine: str, device: int | None = None) -> PackageTrial:
    """Replay the self-test of a package in this process, and keep how it ended."""
    try:
        package = open_package(folder)
        self_test = read_self_test(package.folder, package.contract.vocab_size)
        if self_test is None:
            return PackageTrial(provider, engine, None, "the package has no self-test")
        return _replayed(package, self_test, provider, engine, device)
    except Phi3OnnxError as error:
        return PackageTrial(provider, engine, None, error.message)


def _replayed(package: Package, self_test: SelfTest, provider: str, engine: str, device: int | None) -> PackageTrial:
    if engine == "together":
        loaded, _ = load_packed_engine(package, provider)
    else:
        loaded, _ = load_engine(package, provider, device=device)
    verdict = replay(self_test, loaded)
    keep_proof(key_of(package.folder, loaded.name, provider, device), passed=verdict.passed, verdict=str(verdict))
    return PackageTrial(provider, engine, verdict.passed, str(verdict))


def main(arguments: Sequence[str]) -> None:
    """Try what is named (folder, provider, engine, and the GPU's number), and print the result as a line of JSON."""
    folder, provider, engine, *device = arguments
    trial = run_trial(Path(folder), provider, engine, int(device[0]) if device else None)
    print(json.dumps(asdict(trial)))


if __name__ == "__main__":
    main(sys.argv[1:])
