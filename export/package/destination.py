"""The folder an export writes to: checked before any work, built beside its final place, swapped in at the end."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...configs import OutputError
from ...configs.exchange import LOCK, PARTIAL, beside, put_in_place, settle, settle_locked
from ...configs.locks import Lock, lock_owner, try_lock
from ...configs.manifest import MANIFEST_NAME
from ...configs.sizes import size

_LONGEST_NAME = 255
"""Bytes, of Linux's file systems, macOS' and Windows' (characters, there)."""
_WAIT_SECONDS = 2.0
"""For a lock that another verb may hold for a moment, while it clears leftovers away."""


def check_destination(output: Path, needed_bytes: int, *, force: bool) -> Path:
    """Check that a package of `needed_bytes` can be written to `output`, and return where: a link is followed.

    Raises:
        OutputError: it is taken (and `force` is not given, or what is there is no package), not writable or too small,
            or no folder can have that path.

    """
    _check_names(output)
    try:
        output = _followed(output)
        _check_place(output)
    except OSError as error:
        raise OutputError(f"{output} cannot be made: {error.strerror or error}; name another folder with -o") from error
    settle(output)
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; name a folder with -o")
    if output.is_dir() and any(output.iterdir()):
        if not force:
            raise OutputError(f"{output} already exists; name another folder with -o, or replace it with --force")
        if not any((output / name).is_file() for name in (MANIFEST_NAME, "genai_config.json")):
            raise OutputError(f"{output} is not a package, so --force will not replace it; name another folder with -o")
    parent = _existing_parent(output)
    if not parent.is_dir():
        raise OutputError(f"{parent} is not a folder, so {output} cannot be made; name another folder with -o")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} is not writable; name another folder with -o")
    if owner := lock_owner(beside(output, LOCK)):
        raise OutputError(f"{output} is being written by {owner}; wait for it, or name another folder with -o")
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise OutputError(
            f"{parent} has {size(free)} free, the package needs {size(needed_bytes)}; "
            "free some space or name another folder with -o"
        )
    return output


def _check_names(output: Path) -> None:
    """Refuse names that no file has, with room for what stands beside a package while it is made."""
    try:
        text = str(output).encode()  # ONNX Runtime takes no other names
    except UnicodeEncodeError:
        raise OutputError(f"the name {str(output)!r:.80} is not UTF-8 text; name another folder with -o") from None
    if b"\0" in text:
        raise OutputError("the name of a folder must not hold a null character; name another with -o")
    longest = output.name and beside(output.with_name(f"{output.name}.failed"), PARTIAL).name
    for name in (longest, *output.parts):
        if len(os.fsencode(name)) > _LONGEST_NAME:
            raise OutputError(f"the name {name.lstrip('.')[:40]}... is too long for the disk; shorten -o")


def _followed(output: Path) -> Path:
    """Return the folder behind a link, which then is what is replaced, and not the link."""
    for path in (output, *output.absolute().parents):
        # Not Path.exists, which raises where links go in a circle.
        if path.is_symlink() and not os.path.exists(path):  # noqa: PTH110
            raise OutputError(f"{path} is a link to {path.readlink()}, which does not exist; name a folder with -o")
    return output.resolve() if output.is_symlink() else output


def _check_place(output: Path) -> None:
    """Refuse what no rename can replace: the folder of a disk, and the one we stand in."""
    whole = output.resolve()
    if not whole.name or whole.is_mount():
        raise OutputError(f"{output} is where a disk begins, which nothing can replace; name a folder in it with -o")
    here = Path.cwd()
    if whole in (here, *here.parents):
        raise OutputError(f"{output} is the folder that this command runs in; name a folder in it with -o")


def _existing_parent(path: Path) -> Path:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent


@contextmanager
def building(output: Path) -> Iterator[Path]:
    """Give a temporary folder beside `output` that takes its place when the context ends without an error.

    With an error, Ctrl-C included, nothing is left behind and whatever was at `output` stays as it was. What an earlier
    run that was killed left there is settled first.

    Raises:
        OutputError: the folder cannot be made, or another process is making it.

    """
    output = _followed(output).absolute()
    partial = beside(output, PARTIAL)
    with _locked(output):
        try:
            settle_locked(output)
            partial.mkdir()
        except OSError as error:
            raise _not_writable(output.parent, error) from error
        try:
            yield partial
            put_in_place(partial, output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _locked(output: Path) -> Lock:
    path = beside(output, LOCK)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = try_lock(path, _WAIT_SECONDS)
        if lock is not None:
            return lock
        raise OutputError(f"{output} is being written by {lock_owner(path)}; wait for it, or name another folder")
    except OSError as error:
        raise _not_writable(output.parent, error) from error


def _not_writable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"{folder} cannot be written to: {error.strerror or error}; name another folder")
