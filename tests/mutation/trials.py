"""Plants small errors into the numeric core, one at a time, and runs its tests: do they notice?

    tests/mutation/run                            a sample of each group
    tests/mutation/run --group sampling --sample 0        all mutants of a group
    tests/mutation/run --sample 60 --seed 2 --markdown survivors.md

Each mutant is tried in a process that is forked from one that has imported what the tests import of others, where the
import of the module gives the one with the error. A mutant whose tests fail, or take more than ten times the processor
time that they take without, is dead. Exit code 1 where fewer than 85 % of the sample die.
"""

import argparse
import contextlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path, PurePath
from types import ModuleType

from .mutants import Mutant, mutant, places

FOLDER = Path(__file__).parents[2]
_LEAST_KILLED = 0.85
_SLOWER = 10
_LEAST_SECONDS = 30
"""Of processor time: other work on the machine must not kill a mutant."""
_LONGEST_SECONDS = 1800.0
"""By the clock, for tests that wait for what never comes."""


Group = Mapping[str, tuple[str, ...]]
"""Patterns of modules, and the tests that hold those."""


def _quantize(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/quantize/test_{name}.py" for name in names)


GROUPS: Mapping[str, Group] = {
    "quantize": {
        "quantize/awq.py": _quantize("awq"),
        "quantize/budget.py": _quantize("budget"),
        "quantize/calibrate.py": _quantize("calibrate"),
        "quantize/gptq.py": _quantize("gptq"),
        "quantize/exact.py": _quantize("phi3", "precision", "method"),
        "quantize/grid.py": _quantize("rtn", "method"),
        "quantize/method.py": _quantize("method"),
        "quantize/packed.py": _quantize("packed", "rtn"),
        "quantize/phi3.py": _quantize("phi3"),
        "quantize/precision.py": _quantize("precision"),
        "quantize/rounding.py": _quantize("rtn", "gptq", "awq"),
        "quantize/rtn.py": _quantize("rtn"),
        "quantize/samples.py": _quantize("calibrate"),
        "quantize/decoder_layer.py": _quantize("phi3", "calibrate"),
        "quantize/rotary.py": _quantize("phi3", "calibrate"),
    },
    "passes": {"export/graph/passes/*.py": ("tests/export/graph/test_passes.py",)},
    "sampling": {"runtime/decoding/sampling.py": ("tests/runtime/decoding/test_sampling.py",)},
    "metrics": {"evaluate/parity/metrics.py": ("tests/evaluate/parity/test_metrics.py",)},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=GROUPS, action="append", help="[default: all]")
    parser.add_argument("--module", help="only modules with this in their path")
    parser.add_argument("--sample", type=int, default=40, help="mutants of each group; 0 takes all  [default: 40]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="end after so long")
    parser.add_argument("--markdown", type=Path, help="write the table of survivors into a file")
    options = parser.parse_args()
    _import_first()
    until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    survivors: list[str] = []
    tried = killed = 0
    for name in options.group or GROUPS:
        group = GROUPS[name]
        chosen = _sample(group, options.module, options.sample, random.Random(options.seed))
        limits: dict[tuple[str, ...], int] = {}
        here = dead = 0
        for path, error in chosen:
            if until is not None and time.monotonic() >= until:
                break
            tests = _tests(group, path)
            if tests not in limits:
                limits[tests] = _limit(tests)
            here += 1
            if _passes(tests, (path, error), limits[tests]):
                row = f"| `{path}:{error.line}` | `{_cell(error.before)}` | `{_cell(error.after)}` |"
                survivors.append(row)
                print(row, flush=True)
            else:
                dead += 1
        print(f"{name}: {dead} of {here} mutants were noticed", flush=True)
        tried, killed = tried + here, killed + dead
    print(f"all: {killed} of {tried}, {killed / max(tried, 1):.1%}")
    if options.markdown:
        head = "| place | written | mutant that no test notices |\n|---|---|---|\n"
        options.markdown.write_text(head + "\n".join(survivors) + "\n", encoding="utf-8")
    return 0 if killed >= _LEAST_KILLED * tried else 1


def _tests(group: Group, path: str) -> tuple[str, ...]:
    return next(tests for pattern, tests in group.items() if PurePath(path).match(pattern))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sample(group: Group, part: str | None, count: int, random: random.Random) -> list[tuple[str, Mutant]]:
    """Return so many of a group's mutants, or all for 0, with their modules' paths."""
    paths = sorted(path for pattern in group for path in FOLDER.glob(pattern))
    sources = {path.relative_to(FOLDER).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    found = [(name, place) for name, text in sources.items() if not part or part in name for place in places(text)]
    chosen = found if not count or count >= len(found) else random.sample(found, count)
    return [(name, mutant(sources[name], place)) for name, place in chosen]


def _import_first() -> None:
    """Import what takes long and has no part of this project's in it."""
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PHI3_ONNX_THREADS"), "1")
    for name in ("torch", "numpy", "onnx_ir", "pytest", "hypothesis", "tokenizers", "transformers", "onnxruntime"):
        with contextlib.suppress(ImportError):
            __import__(name)
    import torch

    torch.set_num_threads(1)


def _limit(tests: Sequence[str]) -> int:
    """Return the seconds of processor time that tests get, and import what they import of others.

    Raises:
        SystemExit: they fail without an error planted.

    """
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder) / "names"
        begun = _children_seconds()
        if not _passes(tests, None, resource.RLIM_INFINITY, names):
            raise SystemExit(f"{' '.join(tests)} fail without an error planted")
        for name in names.read_text().split():
            with contextlib.suppress(Exception):
                __import__(name)
    return max(_LEAST_SECONDS, int(_SLOWER * (_children_seconds() - begun)))


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _passes(tests: Sequence[str], planted: tuple[str, Mutant] | None, seconds: int, names: Path | None = None) -> bool:
    """Whether the tests pass with an error planted; not where they do not end.

    Args:
        tests: their files.
        planted: the module's path and its error.
        seconds: of processor time.
        names: where to write the names of all modules of other packages that the tests imported.

    """
    number = os.fork()
    if number == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        _run(tests, planted, names)
    until = time.monotonic() + _LONGEST_SECONDS
    while time.monotonic() < until:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return status == 0
        time.sleep(0.02)
    os.killpg(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return False


def _run(tests: Sequence[str], planted: tuple[str, Mutant] | None, names: Path | None) -> None:
    code = 1
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        if planted is not None:
            path, error = planted
            module = "phi3_onnx." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            sys.meta_path.insert(0, _Planter(module, error.source, str(FOLDER / path)))
        os.chdir(FOLDER)
        import pytest

        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not real", *tests]))
        if names is not None:
            installed = [name for name, module in list(sys.modules.items()) if _is_installed(module)]
            names.write_text("\n".join(installed))
    finally:
        os._exit(code)


def _is_installed(module: ModuleType) -> bool:
    return "site-packages" in PurePath(getattr(module, "__file__", None) or "").parts


class _Planter(MetaPathFinder, SourceLoader):
    """Gives one module with another source."""

    def __init__(self, name: str, source: str, path: str) -> None:
        self._name, self._source, self._path = name, source, path

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        package = Path(self._path).name == "__init__.py"
        return spec_from_loader(fullname, self, origin=self._path, is_package=package)

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str) -> bytes:
        return self._source.encode()

    def path_stats(self, path: str) -> dict[str, float]:
        raise OSError("a planted module is compiled each time")


if __name__ == "__main__":
    sys.exit(main())
