"""Checkpoints on the Hugging Face hub: only the files that an export reads are fetched, into the hub's own cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...configs import parse_model_config
from ...configs.errors import SourceError
from ...configs.files import read_json
from .adapter.config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from .checkpoint import Checkpoint
from .folder import INDEX, SINGLE, open_folder, shard_names
from .naming import short_name

# Never code (*.py) and never pickles (*.bin, *.pt).
_SMALL_FILES = ("*.json", "*.jinja", "tokenizer.model", "merges.txt")


def open_hub(repository: str, *, revision: str | None = None, token: str | None = None) -> Checkpoint:
    """Fetch what is not cached yet of `organization/name` and open it.

    Its configuration comes first, so that a model of another kind is refused before gigabytes are fetched.
    `token` is by default the one of `HF_TOKEN` or `hf auth login`.

    Raises:
        SourceError: the hub cannot be reached, has no such model or revision, wants a token, or the model is of a kind
            that is not supported.

    """
    folder = _fetch(repository, revision, token, _SMALL_FILES)
    config = folder / "config.json"
    if config.is_file():
        parse_model_config(read_json(config, SourceError), f"{repository}/config.json")
        folder = _fetch(repository, folder.name, token, _weight_names(folder))
        if not any(folder.glob("*.safetensors")):
            raise SourceError(
                f"{repository} has no safetensors weights on the hub; take a revision or another upload that has them"
            )
    # A snapshot lies in a folder named after its commit.
    return open_folder(folder, source=repository, revision=folder.name, model=short_name(repository.split("/")[1]))


def fetch_adapter(repository: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Fetch what is not cached yet of a PEFT adapter `organization/name`, and return the snapshot's folder.

    Raises:
        SourceError: the hub cannot be reached, has no such repository or revision, or it is not an adapter.

    """
    folder = _fetch(repository, revision, token, _SMALL_FILES)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise SourceError(f"{repository} is not an adapter: it has no {ADAPTER_CONFIG}")
    return _fetch(repository, folder.name, token, (ADAPTER_WEIGHTS,))


def _weight_names(folder: Path) -> Sequence[str]:
    index = folder / INDEX
    if not index.is_file():
        return (SINGLE,)
    return shard_names(index)


def _fetch(repository: str, revision: str | None, token: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    with explained(repository, revision):
        return Path(snapshot_download(repository, revision=revision, token=token, allow_patterns=list(patterns)))


@contextmanager
def explained(repository: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's library raises into one line that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:  # a kind of RepositoryNotFoundError, so it has to come first
        raise SourceError(
            f"{repository} is gated: accept its terms on https://huggingface.co/{repository}, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"the hub has no model {repository!r}, or it is private; check the name, or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise SourceError(f"{repository} has no revision {revision!r}; see its branches and tags on the hub") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise SourceError(
            f"{repository} is not on this machine, and the hub is out of reach (no connection, or HF_HUB_OFFLINE=1); "
            "go online, or name a folder that holds the checkpoint"
        ) from error
    except HFValidationError as error:
        raise SourceError(f"{repository!r} is not a hub id; expected organization/name") from error
    except Exception as error:  # the transport's own errors differ from one version of the library to the next
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SourceError(f"{repository} cannot be fetched: {reason}; try again, what is complete is kept") from error
