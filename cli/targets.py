"""`phi3-onnx targets`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .table import print_lines, table_lines

if TYPE_CHECKING:
    from ..configs import Target


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything, thresholds included, as JSON.")
def command(as_json: bool) -> None:
    """List the kinds of package that can be made."""
    from ..configs import targets

    if as_json:
        click.echo(json.dumps([asdict(target) for target in targets().values()], indent=1))
        return
    rows = [
        (target.name, target.provider, target.io_dtype, target.weights, target.description + _aliases(target))
        for target in targets().values()
    ]
    print_lines(table_lines(rows, ("target", "provider", "type", "weights", "what it is")))


def _aliases(target: "Target") -> str:
    return f"; also called {' or '.join(target.aliases)}" if target.aliases else ""
