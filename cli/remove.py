"""`phi3-onnx rm`."""

import click

from .screen import notice


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def command(names: tuple[str, ...], yes: bool) -> None:
    """Remove packages from the store, by their names in it."""
    from ..configs import UsageError, find_package, list_packages
    from ..configs.exchange import discard
    from ..configs.store import foreign_packages
    from ..runtime.proof.prepacked import forget_copies

    stored = {package.folder.resolve(): package.name for package in list_packages()}
    stored |= {folder.resolve(): name for name, folder in foreign_packages().items()}
    chosen = []
    for name in names:  # all of them are found before any goes away
        folder = find_package(name).resolve()
        if folder not in stored:
            raise UsageError(f"{folder} is not in the store, so it is not removed; delete the folder yourself")
        chosen.append(folder)
    for folder in chosen:
        if not yes and not click.confirm(f"remove {stored[folder]} ({folder})?"):
            continue
        forget_copies(folder)
        discard(folder)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
        notice(f"removed {stored[folder]}")
