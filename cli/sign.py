"""`phi3-onnx sign`."""

import os
from pathlib import Path

import click

from .screen import notice

PASSWORD_VARIABLE = "PHI3_ONNX_KEY_PASSWORD"


@click.command()
@click.argument("package", required=False)
@click.option("--key", type=click.Path(path_type=Path), help="Private key to sign with (Ed25519, PEM).")
@click.option("--new-key", type=click.Path(path_type=Path), help="Make a key there, and its public half beside it.")
def command(package: str | None, key: Path | None, new_key: Path | None) -> None:
    """Sign a package: what it was made from, its files' sums, what its verification measured.

    The statement (in-toto, in a DSSE envelope) is written into the package as phi3_onnx.intoto.jsonl and goes with it
    when it is pushed. `verify --attestation --key KEY.pub` and `pull --require-verified --key KEY.pub` check it. An
    encrypted key's password is asked for, or taken from PHI3_ONNX_KEY_PASSWORD.
    """
    from ..configs import UsageError
    from ..configs.requirements import require_sign

    if (new_key is None) == (package is None):
        raise UsageError("name a package to sign, or a file to make with --new-key")
    require_sign()
    if new_key is not None:
        from ..export.package.keys import make_keys

        public = make_keys(new_key, os.environ.get(PASSWORD_VARIABLE))
        notice(f"made {new_key}, which nobody else may read; give {public} to whoever checks your packages")
        click.echo(public)
        return
    if key is None:
        raise UsageError("name your private key with --key; make one: phi3-onnx sign --new-key FILE")
    assert package is not None
    from ..configs import find_package

    click.echo(sign_package(find_package(package), key))


def sign_package(folder: Path, key: Path) -> Path:
    """Sign a package with the key of a file, say what was signed, and return the statement's path."""
    from ..configs import read_manifest
    from ..export.package.attestation import sign
    from ..export.package.keys import key_id, read_private

    private = read_private(key, _password)
    path = sign(folder, private)
    state = {True: "passed", False: "FAILED", None: "has not run"}[read_manifest(folder).verified]
    notice(f"signed {folder} with the key {key_id(private.public_key())[:16]}; its verification {state}")
    return path


def _password() -> str:
    return os.environ.get(PASSWORD_VARIABLE) or click.prompt("password of the key", hide_input=True, err=True)
