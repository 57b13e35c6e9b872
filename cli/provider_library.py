"""`--provider-library`: the option of every verb that takes a provider."""

import click

from ..configs.extras import LIBRARIES_VARIABLE


def _add(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> None:
    if values and not ctx.resilient_parsing:
        from ..runtime.providers.plugins import add_library

        for value in values:
            add_library(value)


provider_library = click.option(
    "--provider-library",
    multiple=True,
    metavar="NAME=PATH",
    expose_value=False,
    is_eager=True,
    callback=_add,
    allow_from_autoenv=False,
    help="Register a plug-in with execution providers; NAME is then one for --provider. May be repeated; the "
    f"environment variable {LIBRARIES_VARIABLE} holds several, separated as in PATH.",
)
"""The option; what it names goes into the environment variable, which every process of ours reads."""
