"""Packages on the hub: in which folder of a repository a target's lies, and fetching it into the store.

The layout is that of microsoft/Phi-3-mini-4k-instruct-onnx: a folder for each kind of machine, in it one for each
package, such as `cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4`.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ...configs import OutputError, SourceError, Target, read_manifest, store_folder
from ...configs.manifest import MANIFEST_NAME, check_files
from ...configs.sizes import size
from ...configs.target import published
from ..sources.hub import explained
from ..sources.naming import short_name
from .destination import building, check_destination

Notify = Callable[[str], None]

_MACHINES = {"cpu": "cpu_and_mobile", "cuda": "cuda", "dml": "directml", "webgpu": "web"}
_CONFIG = "genai_config.json"
_CODE = (".py", ".pyc", ".ipynb")
"""What is never fetched: published folders bring modelling code, which nothing here runs."""


def published_folder(target: Target) -> str:
    """Return the folder of a target in a repository, such as `cuda/cuda-fp16`."""
    return f"{_MACHINES[target.provider]}/{(target.aliases or (target.name,))[0]}"


def find_published(files: Sequence[str], target: Target | str) -> str | None:
    """Return the folder of a repository that holds a target's package; "" is the repository itself, None none at all.

    The folder is the published one, or one called as the target or one of its aliases, or as the target with more
    after it (`cpu-int4-awq-block-128-acc-level-4`).

    Args:
        files: paths of the repository's files.
        target: the target, or the name of one that is not known here (a variant, someone's own).

    """
    folders = [str(PurePosixPath(file).parent) for file in files if PurePosixPath(file).name == _CONFIG]
    tests: tuple[Callable[[str], bool], ...]
    if isinstance(target, str):
        tests = (lambda folder: folder.rpartition("/")[2] == target,)
    else:
        named = {target.name, *target.aliases}
        tests = (
            lambda folder: folder == published_folder(target),
            lambda folder: folder.rpartition("/")[2] in named,
            lambda folder: folder.rpartition("/")[2].startswith(f"{target.name}-"),
        )
    found = next((folder for test in tests for folder in folders if test(folder)), None)
    if found is None and folders == ["."]:
        return ""
    return found


def pull(
    repository: str,
    target: str,
    output: Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    force: bool = False,
    check: Callable[[Path], None] | None = None,
    notify: Notify,
) -> Path:
    """Fetch a target's package from the hub and return its folder, by default in the store.

    What was fetched before is kept in the hub's own cache, so a pull that was cut off continues where it was. A package
    of phi3-onnx goes into the store under the target that its manifest names, whatever the repository calls it.

    Args:
        repository: `organization/name`.
        target: which package: a target's name or alias, or the name of a variant or of someone's own target.
        output: folder to make; None puts it into the store.
        revision: commit, tag or branch.
        token: the hub's access token; None takes `HF_TOKEN`.
        force: replace the package that is already there.
        check: called with the fetched package before it gets its place; what it raises refuses the package.
        notify: called with a line for each step.

    Raises:
        SourceError: the hub cannot be reached, or the repository has no such package.
        OutputError: the package cannot be written there.
        PackageError: a package of ours came damaged.

    """
    known = published(target)
    if output is not None:
        output = check_destination(output, 0, force=force)
    commit, sizes = _listing(repository, revision, token)
    inside = find_published(list(sizes), known or target)
    if inside is None:
        raise SourceError(_no_package(repository, known or target, list(sizes)))
    wanted = {name: size for name, size in sizes.items() if _belongs(name, inside)}
    name = known.name if known else target
    if (manifest := str(PurePosixPath(inside, MANIFEST_NAME))) in wanted:
        stated = read_manifest(_snapshot(repository, commit, token, [manifest]) / inside).target.name
        if stated != name:
            notify(f"{inside or repository} is a {stated} package")
        name = stated
    folder = output or store_folder(short_name(repository.rpartition("/")[2]), name)
    folder = check_destination(folder, sum(wanted.values()), force=force)
    notify(f"fetching {inside or repository}: {size(sum(wanted.values()))} in {len(wanted)} files")
    snapshot = _snapshot(repository, commit, token, list(wanted)) / inside
    with building(folder) as partial:
        for name in wanted:
            _place(snapshot / PurePosixPath(name).name, partial / PurePosixPath(name).name)
        if (partial / MANIFEST_NAME).is_file():
            check_files(partial, read_manifest(partial), hashes=True)
        if check is not None:
            check(partial)
    return folder


def _belongs(name: str, inside: str) -> bool:
    path = PurePosixPath(name)
    return str(path.parent) == (inside or ".") and path.suffix not in _CODE and not path.name.startswith(".")


def _listing(repository: str, revision: str | None, token: str | None) -> tuple[str, dict[str, int]]:
    """Return the commit of a revision, and the size of each of its files."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(token=token)
    with explained(repository, revision):
        commit = api.model_info(repository, revision=revision).sha
        assert commit is not None, "the hub always names the commit"
        tree = api.list_repo_tree(repository, recursive=True, revision=commit)
        return commit, {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}


def _no_package(repository: str, target: Target | str, files: Sequence[str]) -> str:
    folders = sorted(str(PurePosixPath(file).parent) for file in files if PurePosixPath(file).name == _CONFIG)
    if not folders:
        return f"{repository} holds no ONNX package (no {_CONFIG}); to make one: phi3-onnx export {repository}"
    wanted = target if isinstance(target, str) else f"{target.name} ({published_folder(target)})"
    return f"{repository} has no package for {wanted}; it has {', '.join(folders)}"


def _snapshot(repository: str, commit: str, token: str | None, names: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    with explained(repository, commit):
        found = Path(snapshot_download(repository, revision=commit, token=token, allow_patterns=list(names)))
    _drop_cut_off(found)
    return found


def _drop_cut_off(snapshot: Path) -> None:
    """Remove what downloads that were killed left of files that are complete now: nothing would ever use it again.

    The hub's library holds a file's lock while it downloads it, so what another process is writing stays.
    """
    from filelock import FileLock, Timeout

    repository = snapshot.parents[1]
    locks = repository.parent / ".locks" / repository.name
    for path in (repository / "blobs").glob("*.incomplete"):
        blob = path.name.partition(".")[0]
        if not (path.parent / blob).exists():
            continue
        with suppress(Timeout, OSError), FileLock(locks / f"{blob}.lock", timeout=0):
            path.unlink(missing_ok=True)


def _place(source: Path, path: Path) -> None:
    """Put a file of the hub's cache into the package, as a second name of the same bytes where the disk allows it."""
    try:
        try:
            os.link(source.resolve(), path)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(source, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
