"""Names that the user gives to packages: a file of them beside the store."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from .errors import UsageError
from .files import read_json, replacing

FILE_NAME = "aliases.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


def read_aliases(home: Path) -> dict[str, str]:
    """Return what each alias stands for: a package's name in the store, or its folder.

    Args:
        home: the project's data folder.

    Raises:
        UsageError: the file cannot be read, or holds something else than names.

    """
    path = home / FILE_NAME
    table = read_json(path, UsageError, remedy="repair or delete it", optional=True)
    if not all(isinstance(target, str) for target in table.values()):
        raise UsageError(f"{path} must hold a text for each name; repair or delete it")
    return table


def write_aliases(home: Path, aliases: Mapping[str, str]) -> None:
    """Replace all aliases.

    Raises:
        UsageError: a name cannot be one.

    """
    for name in aliases:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r:.80} cannot be an alias: it must be 1 to 64 letters, digits, '.', '_', ':' and '-', "
                "and begin with a letter or digit"
            )
    home.mkdir(parents=True, exist_ok=True)
    with replacing(home / FILE_NAME) as part:
        part.write_text(json.dumps(dict(sorted(aliases.items())), indent=1) + "\n", encoding="utf-8")
