"""Where this project was installed from, and the command that adds extras to it from there."""

import json
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

_NAME = "phi3-onnx"


def install_command(*extras: str) -> str:
    """Return the command that installs this project with extras, from where it came from.

    What was installed from a folder, a repository or a file may be on no index, and another project may have the name
    there.

    Args:
        extras: their names.

    """
    return _command(_origin(), ",".join(extras))


def _command(origin: dict[str, Any], extras: str) -> str:
    """Return the command for an origin as PEP 610 writes it; without one it was an index."""
    url = origin.get("url")
    if not url:
        return f'pip install "{_NAME}[{extras}]"'
    if "dir_info" in origin:
        folder = Path(url2pathname(urlsplit(url).path))
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f'pip install {editable}"{folder}[{extras}]"'
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        url = f"{vcs['vcs']}+{url}@{vcs.get('requested_revision') or vcs['commit_id']}"
    return f'pip install "{_NAME}[{extras}] @ {url}"'


@cache
def _origin() -> dict[str, Any]:
    try:
        text = distribution(_NAME).read_text("direct_url.json")
    except PackageNotFoundError:  # run from its source without being installed
        return {}
    return json.loads(text) if text else {}
