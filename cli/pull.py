"""`phi3-onnx pull`."""

from collections.abc import Callable
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
@click.option("--require-verified", is_flag=True, help="Take only what --key signed as verified, as it was signed.")
@click.option("--key", type=click.Path(path_type=Path), help="The signer's public key (Ed25519, PEM).")
@click.option("--force", is_flag=True, help="Replace the package that is already there.")
def command(
    repository: str,
    target: str,
    output: Path | None,
    revision: str | None,
    require_verified: bool,
    key: Path | None,
    force: bool,
) -> None:
    """Fetch a package from the Hugging Face hub.

    REPOSITORY is one that `phi3-onnx push` made, or one of Microsoft's, such as
    microsoft/Phi-3-mini-4k-instruct-onnx. Fetched files are kept, so a pull that was cut off continues. HF_TOKEN
    holds the access token, where one is needed.
    """
    from ..configs.requirements import require_hub, require_sign

    require_hub()
    from ..configs import UsageError
    from ..configs.store import home
    from ..export.package.published import pull

    if require_verified and key is None:
        raise UsageError(
            "name the signer's public key with --key: a package's own word that it was verified is no proof"
        )
    if key is not None:
        require_sign()
    folder = pull(
        repository,
        target,
        output,
        revision=revision,
        force=force,
        check=key and _check(key, require_verified),
        notify=notice,
    )
    store = home() / "packages"
    name = folder.relative_to(store).as_posix() if folder.is_relative_to(store) else str(folder)
    notice(f"done; talk to it: phi3-onnx chat {name}")
    click.echo(folder)


def _check(key: Path, require_verified: bool) -> Callable[[Path], None]:
    """Return what refuses a fetched package that a key did not sign."""
    from ..export.package.attestation import check_attestation
    from ..export.package.keys import read_public

    public = read_public(key)

    def check(folder: Path) -> None:
        found = check_attestation(folder, public, require_verified=require_verified)
        notice(f"signed by the key {found.key_id[:16]}{', as verified' if found.passed else ''}")

    return check
