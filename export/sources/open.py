"""Whatever a user names as SOURCE, opened as a checkpoint: a local folder, a `.gguf` file, or a hub id."""

from pathlib import Path

from ...configs.errors import SourceError
from ...configs.manifest import MANIFEST_NAME
from .checkpoint import Checkpoint
from .folder import open_folder
from .naming import is_hub_id


def open_checkpoint(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    adapter: str | Path | None = None,
) -> Checkpoint:
    """Open a checkpoint and check everything but the values of its weights.

    `source` is a local Hugging Face folder, an unquantized package, a `.gguf` file, or a hub id such as
    `microsoft/Phi-3-mini-4k-instruct`; a path that exists comes first. `revision` (a branch, tag or commit) and
    `token` (by default `HF_TOKEN`) are for hub ids. `adapter` is a PEFT folder, or its hub id (with `@revision`, if one
    is meant), that is merged into the weights.

    Raises:
        SourceError: nothing is there, or it is damaged, incomplete, or of a kind that is not supported.

    """
    base = _open_base(source, revision, token)
    return base if adapter is None else _open_adapter(base, adapter, token)


def _open_base(source: str | Path, revision: str | None, token: str | None) -> Checkpoint:
    path = _existing(source)
    if path and revision is not None:
        raise SourceError(f"{source} is a local path, which has no revisions; leave --revision out")
    if path and (path / MANIFEST_NAME).is_file():
        from .package import open_package_checkpoint

        return open_package_checkpoint(path)
    if path and (path / "genai_config.json").is_file() and not any(path.glob("*.safetensors*")):
        raise SourceError(
            f"{source} is a package that phi3-onnx did not make, whose weights it does not read; "
            "name the checkpoint it was made from"
        )
    if path and path.is_dir():
        return open_folder(path, source=str(source))
    if path:
        return _open_file(path)
    if str(source).lower().endswith(".gguf"):
        raise SourceError(f"{source} does not exist")
    if isinstance(source, str) and is_hub_id(source):
        from .hub import open_hub

        return open_hub(source, revision=revision, token=token)
    raise SourceError(
        f"{source} is neither a folder, a .gguf file, nor a hub id such as microsoft/Phi-3-mini-4k-instruct"
    )


def _open_adapter(base: Checkpoint, adapter: str | Path, token: str | None) -> Checkpoint:
    from .adapter.checkpoint import open_adapter

    name, _, revision = str(adapter).partition("@")
    if not _existing(adapter) and isinstance(adapter, str) and is_hub_id(name):
        from .hub import fetch_adapter

        folder = fetch_adapter(name, revision=revision or None, token=token)
        # A snapshot lies in a folder named after its commit.
        return open_adapter(base, folder, named=name, revision=folder.name)
    return open_adapter(base, Path(adapter).expanduser(), named=str(adapter))


def _existing(source: str | Path) -> Path | None:
    """Return the path that `source` names, if something is there."""
    try:
        path = Path(source).expanduser()
        return path if str(source) and path.exists() else None  # Path("") would be the folder we are in
    except (OSError, RuntimeError):  # too long for a path, in a folder that cannot be read, or ~ of no known user
        return None


def _open_file(path: Path) -> Checkpoint:
    if path.suffix.lower() != ".gguf":
        raise SourceError(
            f"{path} is a file that is not a checkpoint; expected a folder with config.json, or a .gguf file"
        )
    # gguf is imported where one is opened: a folder needs none of it.
    from .gguf.checkpoint import open_gguf

    return open_gguf(path)
