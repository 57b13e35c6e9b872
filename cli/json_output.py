"""JSON on stdout, as `--json` prints it."""

import json
import sys
from typing import Any

import click


def echo_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value as JSON that every reader gets whole.

    Where stdout is not UTF-8, such as a pipe on Windows, other characters than ASCII are escaped: its code page lacks
    some, and no reader expects it.

    Args:
        value: what `json.dumps` takes.
        indent: spaces of an inner level; None prints one line.

    """
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    click.echo(json.dumps(value, indent=indent, ensure_ascii=not is_utf8))
