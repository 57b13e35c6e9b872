"""Reading text and JSON files with errors that name the file, and writing files that are whole or not there."""

import errno
import glob
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil

from .errors import PackageError, Phi3OnnxError
from .locks import try_lock

_PART = ".part"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""Half a character, which only with its other half beside it is a text."""


def read_text(path: Path, error: type[Phi3OnnxError] = PackageError, *, remedy: str = "") -> str | None:
    """Return the content of a UTF-8 file; None where there is none.

    Args:
        path: the file.
        error: what to raise.
        remedy: what to do about it.

    Raises:
        Phi3OnnxError: of the kind `error`: the file cannot be read.

    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}", remedy=remedy) from problem
    except ValueError as problem:
        raise error(f"{path} cannot be read: {problem}", remedy=remedy) from problem


def read_json(
    path: Path, error: type[Phi3OnnxError] = PackageError, *, remedy: str = "", optional: bool = False
) -> dict[str, Any]:
    """Return the content of a file that holds a JSON object.

    Args:
        path: the file.
        error: what to raise.
        remedy: what to do about it.
        optional: whether a file that is not there stands for an empty object.

    Raises:
        Phi3OnnxError: of the kind `error`: the file cannot be read, or holds something else.

    """
    text = read_text(path, error, remedy=remedy)
    if text is None:
        if optional:
            return {}
        raise error(f"{path} cannot be read: {os.strerror(errno.ENOENT)}", remedy=remedy)
    return parse_object(text, path, error, remedy=remedy)


def parse_object(text: str | bytes, path: Path, error: type[Phi3OnnxError], *, remedy: str = "") -> dict[str, Any]:
    """Return the JSON object that the content of a file stands for; see `read_json`.

    Raises:
        Phi3OnnxError: of the kind `error`: it is not valid JSON, or stands for something else.

    """
    table = parse_json(text, path, error, remedy=remedy)
    if not isinstance(table, dict):
        raise error(f"{path} must hold a JSON object, got {type(table).__name__}", remedy=remedy)
    return table


def parse_json(text: str | bytes, path: Path, error: type[Phi3OnnxError], *, remedy: str = "") -> Any:
    """Return the value that the content of a file stands for; see `read_json`.

    Raises:
        Phi3OnnxError: of the kind `error`: it is not valid JSON.

    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is not valid JSON: {problem}", remedy=remedy) from problem
    return value


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside a file; what is written there takes the file's place at the end, or goes where that fails.

    What killed processes left beside the file is removed.

    Raises:
        OSError: the file cannot be replaced.

    """
    _clear_parts(path)
    beside = path.with_name(f".{path.name}-{os.getpid()}{_PART}")
    # Locked while it is written: a part that nobody locks is a dead process's. Windows renames no file that is open.
    lock = None if sys.platform == "win32" else try_lock(beside)
    with lock or nullcontext():
        try:
            yield beside
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def _clear_parts(path: Path) -> None:
    for part in path.parent.glob(f".{glob.escape(path.name)}-*{_PART}"):
        if sys.platform == "win32":
            if not psutil.pid_exists(int(part.name.removesuffix(_PART).rpartition("-")[2])):
                part.unlink(missing_ok=True)
        elif lock := try_lock(part):
            with lock:  # which removes it
                pass
