"""Locks that name their owner. The system frees one when its process ends, however it ends, so no lock goes stale."""

import os
import platform
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

_LOCKED_BYTE = 1 << 30
"""Windows keeps others from reading what is locked, so the byte lies far behind the owner's name."""
_POLL_SECONDS = 0.1


class Lock:
    """A lock that this process holds; `with` frees it at the end and removes its file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        # Elsewhere the file goes while it is locked: whoever opened it meanwhile sees that it is no longer the one.
        if sys.platform != "win32":
            _remove(self._path)
        self._file.close()
        if sys.platform == "win32":
            _remove(self._path)


def try_lock(path: Path, seconds: float = 0) -> Lock | None:
    """Take the lock of a file, which is made where there is none; None where another process holds it.

    On file systems that know no locks, every process gets it.

    Args:
        path: the file.
        seconds: how long to wait for it.

    Raises:
        OSError: the file cannot be made.

    """
    until = time.monotonic() + seconds
    while True:
        file = path.open("a+b")
        if not _locked(file):
            file.close()
            if time.monotonic() >= until:
                return None
            time.sleep(_POLL_SECONDS)
            continue
        if _still_there(file, path):
            file.truncate(0)
            since = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} on {platform.node()}, since {since}".encode())
            file.flush()
            return Lock(path, file)
        file.close()  # its owner removed it between our opening and our locking


def lock_owner(path: Path) -> str | None:
    """Return who holds the lock of a file, such as `process 4711 on desk, since ...`; None where nobody does.

    Raises:
        OSError: the file cannot be opened.

    """
    if not path.exists():
        return None
    lock = try_lock(path)
    if lock is not None:
        with lock:
            return None
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"


def _locked(file: BinaryIO) -> bool:
    if sys.platform == "win32":
        import msvcrt

        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here, as on some network drives
        return True
    return True


def _still_there(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # on Windows, somebody has it open: they remove it
        return
