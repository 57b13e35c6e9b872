"""Whatever a user names as SOURCE, opened as a checkpoint: a local folder, a `.gguf` file, or a hub id."""

import re
from pathlib import Path

from ..configs.errors import SourceError
from ..configs.manifest import MANIFEST_NAME
from .checkpoint import Checkpoint
from .folder_checkpoint import open_folder

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def open_checkpoint(source: str | Path, *, revision: str | None = None, token: str | None = None) -> Checkpoint:
    """Open a checkpoint and check everything but the values of its weights.

    `source` is a local Hugging Face folder, an unquantized package, a `.gguf` file, or a hub id such as
    `microsoft/Phi-3-mini-4k-instruct`; a path that exists comes first. `revision` (a branch, tag or commit) and
    `token` (by default `HF_TOKEN`) are for hub ids.

    Raises:
        SourceError: nothing is there, or it is damaged, incomplete, or of a kind that is not supported.

    """
    path = Path(source).expanduser()
    if path.exists() and revision is not None:
        raise SourceError(f"{source} is a local path, which has no revisions; leave --revision out")
    if (path / MANIFEST_NAME).is_file():
        from .package_checkpoint import open_package_checkpoint

        return open_package_checkpoint(path)
    if path.is_dir():
        return open_folder(path, source=str(source))
    if path.is_file():
        return _open_file(path)
    if path.suffix.lower() == ".gguf":
        raise SourceError(f"{source} does not exist")
    if isinstance(source, str) and _HUB_ID.fullmatch(source):
        from .hub import open_hub

        return open_hub(source, revision=revision, token=token)
    raise SourceError(
        f"{source} is neither a folder, a .gguf file, nor a hub id such as microsoft/Phi-3-mini-4k-instruct"
    )


def _open_file(path: Path) -> Checkpoint:
    if path.suffix.lower() != ".gguf":
        raise SourceError(
            f"{path} is a file that is no checkpoint; expected a folder with config.json, or a .gguf file"
        )
    # gguf is imported where one is opened: a folder needs none of it.
    from .gguf_checkpoint import open_gguf

    return open_gguf(path)
