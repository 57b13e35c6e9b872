"""`phi3-onnx --version`: the versions that decide what a package does, without importing what they are versions of."""

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from ..configs.extras import WHEELS

# ONNX Runtime's wheels by all their names: which of them is installed matters as much as its version.
_SHOWN = ("phi3-onnx", *(name for names in WHEELS.values() for name in names), "torch", "transformers")


def print_versions(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Print the versions and exit: the callback of `--version`."""
    if not wanted or ctx.resilient_parsing:
        return
    for name in _SHOWN:
        try:
            click.echo(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    click.echo(f"Python {platform.python_version()}")
    ctx.exit()
