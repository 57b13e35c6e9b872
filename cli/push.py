"""`phi3-onnx push`."""

from pathlib import Path

import click

from ..configs.sizes import size
from .screen import notice


@click.command()
@click.argument("package")
@click.argument("repository")
@click.option("--base-model", help="Hub id of the original model.  [default: the package's source]")
@click.option("--licence", "--license", help="Licence of the original model, as the hub names it.")
@click.option("--licence-link", "--license-link", help="Where the licence's text is, if the hub has no name for it.")
@click.option("--revision", help="Branch to push to.  [default: main]")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--sign", type=click.Path(path_type=Path), metavar="KEY", help="Sign the packages first (Ed25519, PEM).")
@click.option("--unverified", is_flag=True, help="Push packages too that were not verified, or failed.")
@click.option(
    "--dry-run", type=click.Path(path_type=Path), metavar="DIR", help="Write what would be pushed into a folder."
)
def command(
    package: str,
    repository: str,
    base_model: str | None,
    licence: str | None,
    licence_link: str | None,
    revision: str | None,
    private: bool,
    sign: Path | None,
    unverified: bool,
    dry_run: Path | None,
) -> None:
    """Publish packages on the Hugging Face hub.

    PACKAGE is a package, or a folder of packages of one model. They get the folders of Microsoft's published layout
    (cpu_and_mobile/..., cuda/..., directml/...), and the repository a model card with the figures of every package in
    it, those included that it has already. HF_TOKEN holds the access token.
    """
    from ..configs.requirements import require_hub, require_sign

    require_hub()
    if sign is not None:
        require_sign()
    from ..configs import find_package
    from ..evaluate.card import Entry, licence_of, model_card
    from ..evaluate.card import base_model as named_base
    from ..export.package.upload import already_there, contents, find_packages, push, write_out

    packages = find_packages(find_package(package), unverified=unverified)
    base = named_base(packages[0].manifest, base_model)
    adapter = packages[0].manifest.adapter
    licence = licence_of(str(adapter) if adapter else base, licence)
    here = {found.path for found in packages}
    others = [] if dry_run else [found for found in already_there(repository, None) if found.path not in here]
    entries = [Entry(found.path, found.manifest) for found in (*packages, *others)]
    card = model_card(repository, entries, base=base, licence=licence, licence_link=licence_link)
    if sign is not None:
        from .sign import sign_package

        for found in packages:
            assert found.folder is not None, "those that are here have one"
            sign_package(found.folder, sign)
    files = contents(packages, card)
    total = sum(len(content) if isinstance(content, bytes) else content.stat().st_size for content in files.values())
    notice(f"{len(files)} files, {size(total)}: {', '.join(sorted(here))}")
    if dry_run:
        write_out(files, dry_run)
        click.echo(dry_run)
        return
    click.echo(push(repository, files, f"Add {', '.join(sorted(here))}", revision=revision, private=private))
