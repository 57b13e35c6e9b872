"""Putting packages on the hub: what goes where in the repository, and the one commit that adds it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...configs import Manifest, OutputError, PackageError, read_manifest
from ...configs.manifest import MANIFEST_NAME, check_files, origin
from ..sources.hub import explained
from .attestation import ATTESTATION_NAME
from .destination import building
from .published import published_folder

CARD = "README.md"


@dataclass(frozen=True)
class Published:
    """A package and its folder in the repository."""

    path: str
    manifest: Manifest
    folder: Path | None
    """Where it lies here; None for one that the repository has already."""


def find_packages(folder: Path, *, unverified: bool = False) -> list[Published]:
    """Return the package in a folder, or the packages in its subfolders, with their places in a repository.

    Args:
        folder: one package, or a folder of packages.
        unverified: take packages too that were not verified, or failed.

    Raises:
        PackageError: there is none, one is damaged, failed its verification or was never verified, or they are of
            different models.

    """
    folders = (
        [folder] if (folder / MANIFEST_NAME).is_file() else sorted(p.parent for p in folder.glob(f"*/{MANIFEST_NAME}"))
    )
    if not folders:
        raise PackageError(f"{folder} holds no package of phi3-onnx (no {MANIFEST_NAME}); make one: phi3-onnx export")
    packages: list[Published] = []
    problems: list[str] = []
    for path in folders:
        manifest = read_manifest(path)
        check_files(path, manifest, hashes=True)
        if not manifest.verified and not unverified:
            state = "was never verified" if manifest.verified is None else "failed its verification"
            problems.append(f"{path} {state} (run: phi3-onnx verify {path}; or push with --unverified)")
        packages.append(Published(published_folder(manifest.target), manifest, path))
    sources = sorted({origin(m.source, None, m.adapter) for m in (package.manifest for package in packages)})
    first: dict[str, Path | None] = {}
    problems += [
        f"{other} and {package.folder} both belong into {package.path}; export one of them under another target's name"
        for package in packages
        if (other := first.setdefault(package.path, package.folder)) != package.folder
    ]
    if len(sources) > 1:
        problems.append(f"{folder} holds packages of several models: {', '.join(sources)}; push them one by one")
    if problems:
        raise PackageError("; ".join(problems))
    return packages


def already_there(repository: str, token: str | None) -> list[Published]:
    """Return the packages of phi3-onnx that a repository has; none where there is no such repository yet.

    Raises:
        SourceError: the hub cannot be reached.

    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(token=token)
    with explained(repository, None):
        try:
            names = api.list_repo_files(repository)
        except RepositoryNotFoundError:
            return []
        found: list[Published] = []
        for name in names:
            if PurePosixPath(name).name == MANIFEST_NAME:
                file = Path(hf_hub_download(repository, name, token=token))
                found.append(Published(str(PurePosixPath(name).parent), read_manifest(file.parent), None))
    return found


def contents(packages: Sequence[Published], card: str) -> dict[str, Path | bytes]:
    """Return what to add to the repository: paths in it, and the files or bytes that belong there."""
    files: dict[str, Path | bytes] = {CARD: card.encode()}
    for package in packages:
        if package.folder is not None:
            names = [*package.manifest.files, MANIFEST_NAME]
            if (package.folder / ATTESTATION_NAME).is_file():
                names.append(ATTESTATION_NAME)
            files.update({f"{package.path}/{name}": package.folder / name for name in names})
    return files


def write_out(files: Mapping[str, Path | bytes], folder: Path) -> None:
    """Write what would be pushed into an empty or new folder, which then has all of it or nothing.

    Raises:
        OutputError: it is not empty, or cannot be written to.

    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} is not an empty folder; name another for --dry-run")
        with building(folder) as partial:
            for name, content in files.items():
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    path.write_bytes(content)
                else:
                    shutil.copyfile(content, path)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error


def push(
    repository: str,
    files: Mapping[str, Path | bytes],
    message: str,
    *,
    revision: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Add files to a repository in one commit, which is made if it does not exist, and return the commit's address.

    Raises:
        SourceError: the hub cannot be reached or refuses; the message says why.

    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    with explained(repository, revision):
        api.create_repo(repository, private=private, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        return api.create_commit(repository, operations, commit_message=message, revision=revision).commit_url
