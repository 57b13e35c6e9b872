"""`phi3-onnx targets`."""

import json
from dataclasses import asdict

import click


@click.command(short_help="List the kinds of package that can be made.")
@click.option("--json", "as_json", is_flag=True, help="Print everything, thresholds included, as JSON.")
def command(as_json: bool) -> None:
    """List the kinds of package that can be made."""
    from ..configs import targets

    if as_json:
        click.echo(json.dumps([asdict(target) for target in targets().values()], indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("target", "provider", "dtype", "weights", "what for"):
        table.add_column(column, overflow="fold")
    for target in targets().values():
        alias = f"\nalso {', '.join(target.aliases)}" if target.aliases else ""
        table.add_row(target.name, target.provider, target.io_dtype, target.weights, target.description + alias)
    Console(highlight=False).print(table)
