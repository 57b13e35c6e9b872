"""The folder an export writes to: checked before any work, built beside its final place, swapped in at the end."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ...configs import OutputError
from ...configs.manifest import MANIFEST_NAME

_PARTIAL = ".partial-"


def check_destination(output: Path, needed_bytes: int, *, force: bool) -> None:
    """Check that a package of `needed_bytes` can be written to `output`.

    Raises:
        OutputError: it is taken (and `force` is not given, or what is there is no package), not writable or too small.

    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; name a folder with -o")
    if output.is_dir() and any(output.iterdir()):
        if not force:
            raise OutputError(f"{output} already exists; name another folder with -o, or replace it with --force")
        if not any((output / name).is_file() for name in (MANIFEST_NAME, "genai_config.json")):
            raise OutputError(f"{output} is not a package, so --force will not replace it; name another folder with -o")
    parent = _existing_parent(output)
    if not parent.is_dir():
        raise OutputError(f"{parent} is not a folder, so {output} can not be made; name another folder with -o")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} is not writable; name another folder with -o")
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise OutputError(
            f"{parent} has {free / 1e9:.2f} GB free, the package needs {needed_bytes / 1e9:.2f} GB; "
            "free some space or name another folder with -o"
        )


def _existing_parent(path: Path) -> Path:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent


@contextmanager
def building(output: Path) -> Iterator[Path]:
    """Give a temporary folder beside `output` that takes its place when the context ends without an error.

    With an error, Ctrl-C included, nothing is left behind and whatever was at `output` stays as it was.

    Raises:
        OutputError: the folder can not be made.

    """
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(output)
        partial = output.parent / f".{output.name}{_PARTIAL}{os.getpid()}"
        partial.mkdir()
    except OSError as error:
        raise OutputError(f"{output.parent} can not be written to: {error.strerror}; name another folder") from error
    try:
        yield partial
        swap_in(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def swap_in(folder: Path, output: Path) -> None:
    """Rename `folder` to `output`; what was there before goes away only once the new one is in place."""
    old = output.parent / f".{output.name}.old-{os.getpid()}"
    if output.exists():
        output.replace(old)
    try:
        folder.replace(output)
    except OSError:
        if old.exists():
            old.replace(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(output: Path) -> None:
    """Remove what earlier runs for the same output left when they were killed, but not what a live one writes."""
    for leftover in output.parent.glob(f".{output.name}{_PARTIAL}*"):
        pid = leftover.name.rpartition("-")[2]
        if not (pid.isdigit() and int(pid) != os.getpid() and psutil.pid_exists(int(pid))):
            shutil.rmtree(leftover, ignore_errors=True)
