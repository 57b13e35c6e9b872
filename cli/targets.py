"""`phi3-onnx targets`."""

import json
from dataclasses import asdict

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything, thresholds included, as JSON.")
def command(as_json: bool) -> None:
    """List the kinds of package that can be made."""
    from ..configs import targets

    if as_json:
        click.echo(json.dumps([asdict(target) for target in targets().values()], indent=1))
        return
    for target in targets().values():
        click.echo(f"{target.name:<16}{target.provider:<8}{target.io_dtype:<9}{target.weights}")
        click.echo(f"    {target.description}")
        if target.aliases:
            click.echo(f"    also called {', '.join(target.aliases)}")
