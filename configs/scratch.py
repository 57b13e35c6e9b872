"""Folders for the while, which are found and removed after a process that was killed with one."""

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .locks import Lock, try_lock

_LOCK = ".lock"


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Give an empty folder `.<name>-<process>-<number>` in `parent`, which goes away when the context ends.

    Those that killed processes left under this name are removed first.

    Raises:
        OSError: it cannot be made.

    """
    clear_scratch(parent, name)
    folder, lock = _own(parent, name)
    with lock:
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def clear_scratch(parent: Path, name: str) -> None:
    """Remove the folders that killed processes left in `parent` under this name."""
    for file in parent.glob(f".{name}-*{_LOCK}"):
        if lock := try_lock(file):
            with lock:
                shutil.rmtree(file.with_suffix(""), ignore_errors=True)


def _own(parent: Path, name: str) -> tuple[Path, Lock]:
    for number in itertools.count():
        folder = parent / f".{name}-{os.getpid()}-{number}"
        # Whoever has the lock made the folder, so the lock comes first.
        if lock := try_lock(folder.with_name(folder.name + _LOCK)):
            return folder, lock
    raise AssertionError("numbers do not end")
