"""`phi3-onnx pull`."""

from pathlib import Path

import click

from .screen import notice


@click.command()
@click.argument("repository")
@click.option(
    "-t", "--target", default="cpu-int4-rtn", show_default=True, help="Which one: a target, or a variant's name."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make.  [default: in the store]")
@click.option("--revision", help="Commit, tag or branch.")
@click.option("--force", is_flag=True, help="Replace the package that is already there.")
def command(repository: str, target: str, output: Path | None, revision: str | None, force: bool) -> None:
    """Fetch a package from the Hugging Face hub.

    REPOSITORY is one that `phi3-onnx push` made, or one of Microsoft's, such as
    microsoft/Phi-3-mini-4k-instruct-onnx. Fetched files are kept, so a pull that was cut off continues. HF_TOKEN
    holds the access token, where one is needed.
    """
    from .requirements import require_hub

    require_hub()
    from ..configs.store import home
    from ..export.package.published import pull

    folder = pull(repository, target, output, revision=revision, force=force, notify=notice)
    store = home() / "packages"
    name = folder.relative_to(store).as_posix() if folder.is_relative_to(store) else str(folder)
    notice(f"done; talk to it: phi3-onnx chat {name}")
    click.echo(folder)
