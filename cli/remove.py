"""`phi3-onnx rm`."""

import shutil

import click

from .screen import notice


@click.command(short_help="Remove packages from the store.")
@click.argument("names", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def command(names: tuple[str, ...], yes: bool) -> None:
    """Remove packages from the store, by their names in it."""
    from ..configs import UsageError, find_package, list_packages

    stored = {package.folder.resolve(): package for package in list_packages()}
    chosen = []
    for name in names:  # all of them are found before any goes away
        folder = find_package(name).resolve()
        if folder not in stored:
            raise UsageError(f"{folder} is not in the store, so it is not removed; delete the folder yourself")
        chosen.append(stored[folder])
    for package in chosen:
        if not yes and not click.confirm(f"remove {package.name} ({package.folder})?"):
            continue
        shutil.rmtree(package.folder)
        if not any(package.folder.parent.iterdir()):
            package.folder.parent.rmdir()
        notice(f"removed {package.name}")
