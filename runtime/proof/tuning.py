"""What `tune` found for a package on this machine: kept beside its proofs, and of use for these versions alone."""

import logging
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...configs import Phi3OnnxError
from ...configs.files import read_json
from ..decoding.engine import Engine
from ..decoding.speculation import AUTO, OFF, Speculation
from ..engines.packed_engine import PackedEngine
from ..engines.settings import PLAIN, EngineKind, EngineSettings
from ..package import Package
from ..providers.hardware import default_threads, named_threads, physical_cores
from .prepacked import kept_copy
from .record import Key, keep, key_of, path_of
from .trials import keep_trial, kept_trial

_LOG = logging.getLogger(__name__)
_FOLDER = "tuned"


@dataclass(frozen=True)
class Tuning:
    """What suits a package's engine on this machine."""

    key: Key
    settings: EngineSettings
    speculate: bool
    """Whether running ahead can be worth its time here."""
    found: str
    """What it rests on, in words."""
    created: str
    """UTC, ISO 8601."""

    def __str__(self) -> str:
        """Say what is taken."""
        settings = self.settings
        ahead = "" if self.speculate else ", nothing is run ahead"
        return f"{settings.threads} threads, {settings.prefill_chunk} tokens of a prompt at a time{ahead}"


def tuning_key(folder: Path, kind: EngineKind) -> Key:
    """Return what a tuning is about: the package, the engine, this project's version, the processor and its cores."""
    try:
        ours = version("phi3-onnx")
    except PackageNotFoundError:  # run from its sources
        ours = "from sources"
    return key_of(folder, f"{kind}, phi3-onnx {ours}, {physical_cores()} cores", "cpu", None)


def keep_tuning(tuning: Tuning) -> bool:
    """Keep a tuning in the cache folder; return whether that could be written to."""
    return keep(path_of(_FOLDER, tuning.key), asdict(tuning))


def kept_tuning(folder: Path, kind: EngineKind) -> Tuning | None:
    """Return what was kept; None where nothing was, where it is of another machine or version, or damaged."""
    key = tuning_key(folder, kind)
    try:
        table = read_json(path_of(_FOLDER, key), optional=True)
        found = _tuning(table) if table else None
    except (Phi3OnnxError, KeyError, TypeError, ValueError) as error:
        _LOG.debug("tuning: %s", error)
        return None
    return found if found and found.key == key else None


def forget_tuning(folder: Path) -> int:
    """Remove what was kept of a package here; return of how many engines."""
    paths = [path_of(_FOLDER, tuning_key(folder, kind)) for kind in _KINDS]
    there = [path for path in paths if path.is_file()]
    for path in there:
        path.unlink()
    return len(there)


def tunings_of(folder: Path) -> dict[EngineKind, Tuning]:
    """Return all that is of use for a package here, by engine."""
    return {kind: found for kind in _KINDS if (found := kept_tuning(folder, kind))}


class Tuned:
    """What suits the engines of one package that is being loaded."""

    def __init__(self, package: Package, speculation: Speculation, threads: int | None = None) -> None:
        """Begin.

        Args:
            package: the package.
            speculation: what was asked for.
            threads: likewise.

        """
        self._package = package
        self._threads = threads
        self._tried_with: int | None = None
        self.speculation = speculation
        """What is to be done: `AUTO` is `OFF` where the engine that was loaded last cannot gain by it."""
        self._asked = speculation

    def suits(self, kind: EngineKind) -> EngineSettings:
        """Return what suits an engine here; threads that the environment names win."""
        found = kept_tuning(self._package.folder, kind)
        self.speculation = OFF if found and not found.speculate and self._asked == AUTO else self._asked
        settings = found.settings if found else PLAIN
        threads = None if named_threads() else settings.threads
        # What a step takes was measured with those threads.
        costs = settings.step_seconds if threads else {}
        if kind != "together":
            return EngineSettings(threads, settings.prefill_chunk, costs)
        used = self._threads or threads or default_threads()
        copy = kept_copy(self._package.folder)
        trial = kept_trial(self._package.folder, used, int8=copy is not None and copy.int8)
        self._tried_with = None if trial else used
        return EngineSettings(threads, settings.prefill_chunk, costs, copy, trial)

    def learn(self, engine: Engine) -> None:
        """Keep what trying out the engine showed that was loaded, for its next load."""
        if self._tried_with and isinstance(engine, PackedEngine):
            keep_trial(self._package.folder, self._tried_with, engine.graph.trial, int8=engine.graph.int8)


_KINDS: tuple[EngineKind, ...] = ("together", "onnxruntime", "genai")


def _tuning(table: Any) -> Tuning:
    settings = table["settings"]
    threads, chunk = settings["threads"], settings["prefill_chunk"]
    costs = {int(tokens): float(seconds) for tokens, seconds in settings["step_seconds"].items()}
    whole = all(isinstance(value, int) and value > 0 for value in (threads, chunk))
    if not whole or not all(tokens > 0 and 0 < seconds < 1e6 for tokens, seconds in costs.items()):
        raise ValueError("a setting is out of range")
    speculate, found, created = table["speculate"], table["found"], table["created"]
    if not isinstance(speculate, bool) or not isinstance(found, str) or not isinstance(created, str):
        raise TypeError("a value is of another kind")
    return Tuning(Key(**table["key"]), EngineSettings(threads, chunk, costs), speculate, found, created)
