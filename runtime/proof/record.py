"""What this machine has proven: one small file for each package, engine, device and version, in the cache folder."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...configs import Phi3OnnxError
from ...configs.files import read_json, replacing
from ...configs.manifest import MANIFEST_NAME
from ...configs.store import cache_folder
from ..providers.devices import device_identity
from ..providers.wheels import installed_wheels

_LOG = logging.getLogger(__name__)
_FOLDER = "proofs"


@dataclass(frozen=True)
class Key:
    """What a proof is about: nothing else is proven by it."""

    package: str
    """sha256 of the names, sizes and times of the package's files; a copy has to be proven again."""
    engine: str
    """With its version, such as `onnxruntime-genai 0.18.0`."""
    provider: str
    """By this project's name."""
    device: str
    """Name, number and driver, as far as they are known."""
    wheels: str
    """Of ONNX Runtime and GenAI, with their versions."""


@dataclass(frozen=True)
class Proof:
    """How a replay ended."""

    key: Key
    passed: bool
    verdict: str
    """The figures."""
    created: str
    """UTC, ISO 8601."""


def key_of(folder: Path, engine: str, provider: str, device: int | None) -> Key:
    """Return what a proof would be about.

    Args:
        folder: the package's.
        engine: its name and version.
        provider: by this project's name.
        device: number of the GPU.

    """
    wheels = ", ".join(f"{wheel.name} {wheel.version}" for wheel in installed_wheels())
    return Key(_state(folder), engine, provider, device_identity(provider, device or 0), wheels)


def kept_proof(key: Key) -> Proof | None:
    """Return what was kept; None where nothing was, and where it cannot be read."""
    found = _read(path_of(_FOLDER, key))
    return found if found and found.key == key else None


def keep_proof(key: Key, *, passed: bool, verdict: str) -> None:
    """Keep the end of a replay in the cache folder, where that can be written to."""
    proof = Proof(key, passed, verdict, datetime.now(UTC).isoformat(timespec="seconds"))
    keep(path_of(_FOLDER, key), asdict(proof))


def keep(path: Path, table: Mapping[str, Any]) -> bool:
    """Write what was found into the cache folder, where that can be written to; return whether it could."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside:
            beside.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        _LOG.debug("record: %s", error)
        return False
    return True


def proofs_of(folder: Path) -> list[Proof]:
    """Return all that was kept of a package as it lies there, the oldest first."""
    state = _state(folder)
    return sorted((proof for proof in _all() if proof.key.package == state), key=lambda proof: proof.created)


def _all() -> Iterator[Proof]:
    for path in sorted((cache_folder() / _FOLDER).glob("*.json")):
        if proof := _read(path):
            yield proof


def _read(path: Path) -> Proof | None:
    try:
        table = read_json(path, optional=True)
        return _proof(table) if table else None
    except (Phi3OnnxError, KeyError, TypeError) as error:
        _LOG.debug("proof: %s", error)
        return None


def _proof(table: Mapping[str, Any]) -> Proof:
    proof = Proof(**{**table, "key": Key(**table["key"])})
    texts = (proof.verdict, proof.created, *asdict(proof.key).values())
    if not isinstance(proof.passed, bool) or not all(isinstance(text, str) for text in texts):
        raise TypeError("a value is of another kind")
    return proof


def path_of(folder: str, key: Key) -> Path:
    """Return the file of what was found under a key, in a folder of the cache folder."""
    digest = sha256(json.dumps(asdict(key), sort_keys=True).encode()).hexdigest()
    return cache_folder() / folder / f"{digest[:40]}.json"


def _state(folder: Path) -> str:
    # What `verify` writes into the manifest changes nothing that runs. Sums of all bytes would take seconds a load.
    digest = sha256()
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST_NAME and not path.name.startswith(".") and path.is_file():
            state = path.stat()
            digest.update(f"{path.name}\0{state.st_size}\0{state.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
