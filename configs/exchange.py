"""Replace a folder by a finished one so that the place is never empty, and recover where a kill interrupted that.

Linux and macOS exchange two folders in one step. Elsewhere it takes two, and what lies beside the place says how far
they came: `.name.partial` is not complete, `.name.new` is complete and waits for its place, `.name.old` is what was
there before. Whoever holds the lock `.name.lock` may touch them; the lock of a process that was killed is free.
"""

import ctypes
import logging
import os
import shutil
import sys
from pathlib import Path

from .errors import OutputError
from .locks import lock_owner, try_lock

_LOG = logging.getLogger(__name__)

PARTIAL, LOCK = "partial", "lock"
_NEW, _OLD = "new", "old"
_ROLES = (PARTIAL, _NEW, _OLD, LOCK)
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2
"""From Linux's `fcntl.h` and `renameat2(2)`, and macOS' `renamex_np(2)`."""


def beside(place: Path, role: str) -> Path:
    """Return the path beside a place that has a role for it, such as `.phi3.partial` beside `phi3`."""
    return place.with_name(f".{place.name}.{role}")


def put_in_place(folder: Path, place: Path) -> None:
    """Move a finished folder to its place; what was there goes away once the new one is there.

    Whoever calls it holds the place's lock.

    Raises:
        OutputError: the system refuses; the folder is kept, and takes its place at the next `settle`.

    """
    try:
        if place.exists() and _exchange(folder, place):
            shutil.rmtree(folder, ignore_errors=True)
        elif place.exists():
            _remove(beside(place, _NEW))
            folder.replace(beside(place, _NEW))
            _finish(place)
        else:
            folder.replace(place)
    except OSError as error:
        kept = beside(place, _NEW)
        remedy = f"the new one is kept as {kept} until it can" if kept.exists() else "name another folder"
        raise OutputError(f"{place} cannot be replaced: {error.strerror or error}; {remedy}") from error


def discard(place: Path) -> None:
    """Remove a folder at once as far as its name goes; where that is cut short, `settle` removes the rest.

    Raises:
        OutputError: another process writes it, or the system refuses.

    """
    try:
        lock = try_lock(beside(place, LOCK))
        if lock is None:
            raise OutputError(f"{place} is being written by {lock_owner(beside(place, LOCK))}; wait for it")
        with lock:
            settle_locked(place)
            doomed = place.replace(beside(place, PARTIAL))
            shutil.rmtree(doomed)
    except OSError as error:
        raise OutputError(f"{place} cannot be removed: {error.strerror or error}") from error


def settle(place: Path) -> None:
    """Finish, or undo, what a run that was killed left beside a place, and say so in the log.

    Nothing happens where there is nothing, where a live process works on it, or where this one may not write.
    """
    # Not Path.exists, which raises where a name is too long.
    if not any(os.path.exists(beside(place, role)) for role in _ROLES):  # noqa: PTH110
        return
    try:
        lock = try_lock(beside(place, LOCK))
        if lock is None:
            return
        with lock:
            settle_locked(place)
    except OSError as error:
        _LOG.warning("%s: what a run that was killed left there cannot be cleared away: %s", place, error)


def settle_all(parent: Path) -> None:
    """Do what `settle` does for every place in a folder."""
    places = {parent / path.name[1 : -len(role) - 1] for role in _ROLES for path in parent.glob(f".?*.{role}")}
    for place in sorted(places):
        settle(place)


def settle_locked(place: Path) -> None:
    """Do what `settle` does, for whoever holds the lock already.

    Raises:
        OSError: the system refuses.

    """
    if beside(place, _NEW).exists():
        _finish(place)
        _LOG.warning("%s: a run was killed while it replaced this package; the new one is complete and in place", place)
    elif beside(place, _OLD).exists():
        if place.exists():
            _remove(beside(place, _OLD))
        else:
            beside(place, _OLD).replace(place)
            _LOG.warning("%s: a run was killed while it replaced this package; the earlier one was put back", place)
    if beside(place, PARTIAL).exists():
        _remove(beside(place, PARTIAL))
        _LOG.warning("%s: removed what a run that was killed had left half-written", place)


def _finish(place: Path) -> None:
    new, old = beside(place, _NEW), beside(place, _OLD)
    if place.exists():
        _remove(old)
        place.replace(old)
    try:
        new.replace(place)
    except OSError:
        if old.exists():
            old.replace(place)
        raise
    _remove(old)


def _remove(folder: Path) -> None:
    """Rename a folder to an incomplete one's name, then remove it: a partly removed one never looks complete."""
    if not folder.exists():
        return
    doomed = folder
    if not folder.name.endswith(f".{PARTIAL}"):
        doomed = folder.with_suffix(f".{PARTIAL}")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False where the system or its disk cannot."""
    if sys.platform not in ("linux", "darwin"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    try:
        if sys.platform == "linux":
            return libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0
        return libc.renamex_np(*names, _RENAME_SWAP) == 0
    except AttributeError:  # a C library without it
        return False
