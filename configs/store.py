"""The store: where packages go when no folder is named, `<home>/packages/<model>/<target>`, and finding them again."""

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from .aliases import read_aliases
from .errors import PackageError, UsageError
from .exchange import settle, settle_all
from .manifest import MANIFEST_NAME, Manifest, read_manifest
from .target import Target, published

HOME_VARIABLE = "PHI3_ONNX_HOME"


def home() -> Path:
    """Return the project's data folder: `$PHI3_ONNX_HOME`, or the platform's usual place."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named).expanduser() if named else platformdirs.user_data_path("phi3-onnx", appauthor=False)


def cache_folder() -> Path:
    """Return the folder for downloads, which can be deleted at any time: `$PHI3_ONNX_HOME/cache` or the platform's."""
    named = os.environ.get(HOME_VARIABLE)
    return home() / "cache" if named else platformdirs.user_cache_path("phi3-onnx", appauthor=False)


def store_folder(model: str, target: str) -> Path:
    """Return where the package of `model` (`Phi-3-mini-4k-instruct`) for the target of this name belongs."""
    return home() / "packages" / model / target


@dataclass(frozen=True)
class StoredPackage:
    """One package of the store."""

    name: str
    """`<model>/<target>`, which every verb takes in place of a folder."""
    folder: Path
    manifest: Manifest


def list_packages() -> list[StoredPackage]:
    """Return every readable package of the store, newest first."""
    root = _settled_root()
    found: list[StoredPackage] = []
    for path in root.glob(f"*/*/{MANIFEST_NAME}"):
        folder = path.parent
        if folder.name.startswith("."):  # a half-written package of an export that was killed
            continue
        try:
            found.append(StoredPackage(folder.relative_to(root).as_posix(), folder, read_manifest(folder)))
        except PackageError:
            continue
    return sorted(found, key=lambda package: package.manifest.created, reverse=True)


def foreign_packages() -> dict[str, Path]:
    """Return the packages of the store that phi3-onnx did not make (`phi3-onnx pull` fetched them), by name."""
    root = _settled_root()
    folders = sorted(path.parent for path in root.glob("*/*/genai_config.json"))
    return {
        folder.relative_to(root).as_posix(): folder
        for folder in folders
        if not folder.name.startswith(".") and not (folder / MANIFEST_NAME).is_file()
    }


def _settled_root() -> Path:
    """Return the folder of all packages, once what killed runs left in it is settled."""
    root = home() / "packages"
    for folder in root.glob("*/"):
        settle_all(folder)
    return root


def find_package(name: str) -> Path:
    """Return the folder of a package, named by its path or by its name in the store.

    `<model>/<target>`, `<model>` or `<target>` alone are names where they fit one package only; target aliases count.
    So does a name that was given with `phi3-onnx alias`.

    Raises:
        UsageError: the name fits several packages.
        PackageError: nothing fits.

    """
    try:
        name.encode()  # what runs a package takes no other names
    except UnicodeEncodeError:
        raise PackageError(f"the name {name!r:.80} is not UTF-8 text; rename the folder") from None
    path = Path(name).expanduser()
    if path.name:
        settle(path)
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises where a name is too long
        return path
    if (target := read_aliases(home()).get(name)) and target != name:
        return find_package(target)
    parts = name.strip("/").split("/")
    # One that was fetched and that phi3-onnx did not make has no manifest, so only its full name finds it.
    if len(parts) == 2 and (foreign := foreign_packages().get("/".join(parts))):
        return foreign
    stored = list_packages()
    if len(parts) <= 2:
        wanted = {name.strip("/")}
        if target := published(parts[-1]):
            wanted.add("/".join([*parts[:-1], target.name]))
        matches = [p for p in stored if wanted & {p.name, p.manifest.model, *_names(p.manifest.target)}]
        if len(matches) > 1:
            names = ", ".join(p.name for p in matches)
            raise UsageError(f"{name!r} fits {len(matches)} packages: {names}; name one of them in full")
        if matches:
            return matches[0].folder
    known = f"in the store: {', '.join(p.name for p in stored)}" if stored else "the store is empty"
    raise PackageError(f"{name!r} is neither a folder nor a package in the store ({known}); see: phi3-onnx list")


def name_in_store(folder: Path) -> str | None:
    """Return the name of a folder that is a package of the store; None for others."""
    root = (home() / "packages").resolve()
    parts = folder.resolve().relative_to(root).parts if folder.resolve().is_relative_to(root) else ()
    return "/".join(parts) if len(parts) == 2 else None


def _names(target: Target) -> tuple[str, ...]:
    return (target.name, *target.aliases)


def default_package(provider: str | None = None) -> StoredPackage:
    """Return the newest package of the store, of those made for `provider` (`cpu`, `cuda`, `dml`) if one is named.

    Raises:
        PackageError: there is none; the message says how to make one.

    """
    for package in list_packages():
        if provider in (None, package.manifest.provider):
            return package
    example = {"cuda": "cuda-fp16", "dml": "dml-int4-awq"}.get(provider or "cpu", "cpu-int4-rtn")
    wanted = f"for provider {provider} " if provider else ""
    raise PackageError(f"no package {wanted}in the store; make one: phi3-onnx export --target {example}")
