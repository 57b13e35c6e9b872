"""The packages of the store as models that a server offers."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ...configs import find_package, list_packages
from ...configs.aliases import read_aliases
from ...configs.errors import Phi3OnnxError
from ...configs.store import foreign_packages, home, name_in_store
from ..package import open_package, weight_bytes
from ..providers.names import canonical
from .pool import Offer

_WORKING_SHARE = 0.1
"""What a model takes beyond its weights, at least: buffers."""
_TEXT = 4096
"""Tokens of KV cache that it must have room for, unless its context is shorter: contexts can be of 100 GB."""


def offered(provider: str, loader: Callable[[Path], Callable[[], Any]], draft: Path | None = None) -> list[Offer]:
    """Return the packages of the store, newest first, and those that aliases name elsewhere.

    Args:
        provider: `auto`, or the one that packages must be made for.
        loader: returns what loads the package in a folder.
        draft: the package that each of them loads besides, to run answers ahead.

    """
    wanted, aliases = canonical(provider), _aliases()
    more = needed_bytes(draft) if draft else 0
    found: list[Offer] = []
    for package in list_packages():
        if wanted in ("auto", package.manifest.provider):
            made = datetime.fromisoformat(package.manifest.created).timestamp()
            found.append(_offer(package.name, package.folder, loader, aliases, made, package.manifest.target.name))
    folders = {**foreign_packages(), **{names[0]: folder for folder, names in aliases.items() if not _stored(folder)}}
    for name, folder in folders.items():
        found.append(_offer(name, folder, loader, aliases, folder.stat().st_mtime, ""))
    return [replace(offer, needs=offer.needs + more) for offer in found]


def needed_bytes(folder: Path) -> int:
    """Return the memory that a package is expected to take: its weights, buffers, and the KV cache of one text."""
    try:
        package = open_package(folder)
        text = min(_TEXT, package.context_length) * package.kv_bytes_per_token
    except Phi3OnnxError:  # it is said when it is loaded
        text = 0
    return round(weight_bytes(folder) * (1 + _WORKING_SHARE)) + text


def _offer(
    name: str,
    folder: Path,
    loader: Callable[[Path], Callable[[], Any]],
    aliases: dict[Path, list[str]],
    created: float,
    target: str,
) -> Offer:
    others = tuple(alias for alias in aliases.get(folder.resolve(), []) if alias != name)
    return Offer(name, loader(folder), needed_bytes(folder), others, created, target)


def _aliases() -> dict[Path, list[str]]:
    """Return the aliases of each folder; those of packages that are gone are passed over."""
    found: dict[Path, list[str]] = {}
    for alias in read_aliases(home()):
        try:
            found.setdefault(find_package(alias).resolve(), []).append(alias)
        except Phi3OnnxError:
            continue
    return found


def _stored(folder: Path) -> bool:
    return name_in_store(folder) is not None
