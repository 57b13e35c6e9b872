"""Reading a package's text files, with errors that name the file."""

import json
from pathlib import Path
from typing import Any

from ..configs import PackageError


def read_text(path: Path) -> str | None:
    """Return the content of a UTF-8 file; None where there is none.

    Raises:
        PackageError: it can not be read.

    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PackageError(f"{path} can not be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a file that holds a JSON object; empty where there is no such file.

    Raises:
        PackageError: it can not be read, or holds something else.

    """
    text = read_text(path)
    if text is None:
        return {}
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(table, dict):
        raise PackageError(f"{path} must hold a JSON object, got {type(table).__name__}")
    return table
