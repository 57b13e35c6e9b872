"""Copies of packages' second graphs that were made for this machine (`engines.prepacked`), in the cache folder.

One is of use for the package as it lies there, these versions and this processor. It is known by sizes, times and the
hash of its graph: sums of gigabytes would take longer than it saves. What is damaged or of something else is a miss.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...configs import OutputError, Phi3OnnxError
from ...configs.files import read_json
from ...configs.sizes import size
from ...configs.store import cache_folder
from ..engines.packed import DECODE_NAME
from ..engines.prepacked import MachineCopy, write_prepacked
from ..package import Package, weight_bytes
from .record import Key, key_of, path_of

_LOG = logging.getLogger(__name__)
_FOLDER = "prepacked"
_RECORD = "copy.json"
_PART = ".part"
# Bytes of the copy for each of the package: 1.9 for int4 in blocks of 128, 2.5 in blocks of 32.
_GROWTH = 2.6
# In int8 it is 3.1, and 1.6 more while it is made.
_GROWTH_IN_INT8 = 4.8
_LEFT_BY_THE_DEAD = 24 * 3600  # seconds


@dataclass(frozen=True)
class _Copy:
    key: Key
    package: str
    """The package's folder."""
    files: Mapping[str, tuple[int, int]]
    """Size and time of each file."""
    graph: str
    """sha256 of the graph without its weights."""
    found: str
    """What trying it out showed, in words."""
    int8: bool = False
    """Whether it multiplies integers."""


def kept_copy(folder: Path) -> MachineCopy | None:
    """Return the copy of a package's second graph that is of use here; None where there is none."""
    found = _kept(folder)
    return MachineCopy(_place(found.key) / DECODE_NAME, found.int8) if found else None


def describe_copy(folder: Path) -> str | None:
    """Say where the copy of a package lies, and what trying it out showed; None where there is none."""
    if (found := _kept(folder)) is None:
        return None
    return f"{_place(found.key)}{', in int8: ' + found.found if found.int8 else ''}"


def _kept(folder: Path) -> _Copy | None:
    key = _key(folder)
    place = _place(key)
    try:
        table = read_json(place / _RECORD, optional=True)
        if not table:
            return None
        kept = _read(table)
        return kept if kept.key == key and _state(place) == (kept.files, kept.graph) else None
    except (Phi3OnnxError, OSError, KeyError, TypeError, ValueError) as error:
        _LOG.debug("prepacked: %s", error)
        return None


def keep_copy(
    package: Package,
    suits: Callable[[Path], str | None],
    *,
    in_int8: Callable[[Path, Path], None] | None = None,
) -> int | None:
    """Write a copy in place of any earlier one of this package; return its bytes.

    Args:
        package: one that has a second graph.
        suits: tries the copy, and says in words what that showed; None where it is not to be kept.
        in_int8: writes a graph, the first path, so that it multiplies integers; None keeps the package's arithmetic.

    Returns:
        Its bytes; None where it does not suit, and is not kept.

    Raises:
        PackageError: the graph cannot be loaded.
        OutputError: there is no room for it, or the cache folder cannot be written to.

    """
    key = _key(package.folder)
    place = _place(key)
    beside = place.with_name(f".{place.name}-{os.getpid()}{_PART}")
    growth = _GROWTH_IN_INT8 if in_int8 else _GROWTH
    needed = growth * weight_bytes(package.folder)
    try:
        beside.mkdir(parents=True, mode=0o700)
        if (free := shutil.disk_usage(beside).free) < needed:
            raise OutputError(
                f"a copy of {package.name} for this machine takes up to {size(needed)}, and {size(free)} are free in "
                f"{place.parent}"
            )
        source = package.folder / DECODE_NAME
        if in_int8:
            raw = beside / "raw"
            raw.mkdir()
            in_int8(source, raw / DECODE_NAME)
            source = raw / DECODE_NAME
        write_prepacked(source, beside / DECODE_NAME, package.layer_bytes)
        if in_int8:
            shutil.rmtree(source.parent)
        if (found := suits(beside / DECODE_NAME)) is None:
            return None
        files, graph = _state(beside)
        table = asdict(_Copy(key, str(package.folder.resolve()), files, graph, found, in_int8 is not None))
        (beside / _RECORD).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        forget_copies(package.folder)
        beside.replace(place)
        return sum(length for length, _ in files.values())
    except OSError as error:
        raise OutputError(f"{place.parent} cannot be written to: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def forget_copies(folder: Path) -> int:
    """Remove all copies of a package, of other versions and processors too; return how many there were."""
    name, count = str(folder.resolve()), 0
    for place in list(_all()):
        try:
            mine = _read(read_json(place / _RECORD)).package == name
        except (Phi3OnnxError, KeyError, TypeError, ValueError):
            mine = True  # nobody can use it
        if mine:
            shutil.rmtree(place, ignore_errors=True)  # Windows removes none that is loaded
            count += not place.exists()
    return count


def _all() -> Iterator[Path]:
    root = cache_folder() / _FOLDER
    for place in sorted(root.iterdir()) if root.is_dir() else ():
        if not place.name.endswith(_PART):
            yield place
        elif time.time() - place.stat().st_mtime > _LEFT_BY_THE_DEAD:
            shutil.rmtree(place, ignore_errors=True)


def _key(folder: Path) -> Key:
    return key_of(folder, DECODE_NAME, "cpu", None)


def _place(key: Key) -> Path:
    return path_of(_FOLDER, key).with_suffix("")


def _state(place: Path) -> tuple[dict[str, tuple[int, int]], str]:
    """Return sizes and times of a copy's files, and the graph's hash."""
    states = {path.name: path.stat() for path in place.iterdir() if path.name != _RECORD}
    files = {name: (state.st_size, state.st_mtime_ns) for name, state in sorted(states.items())}
    return files, sha256((place / DECODE_NAME).read_bytes()).hexdigest()


def _read(table: Mapping[str, Any]) -> _Copy:
    files = {name: (int(length), int(changed)) for name, (length, changed) in table["files"].items()}
    key, int8 = Key(**table["key"]), table.get("int8", False)
    if not isinstance(int8, bool):
        raise TypeError("a value is of another kind")
    return _Copy(key, str(table["package"]), files, str(table["graph"]), str(table.get("found", "")), int8)
