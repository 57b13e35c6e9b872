"""`phi3-onnx list`."""

import json

import click

from ..configs.sizes import size
from .screen import notice
from .table import Colored, print_lines, table_lines


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def command(as_json: bool) -> None:
    """List the packages in the store, newest first; those that phi3-onnx did not make come last."""
    from ..configs import list_packages
    from ..configs.store import foreign_packages, home

    packages = list_packages()
    rows = [
        {
            "name": package.name,
            "target": package.manifest.target.name,
            "folder": str(package.folder),
            "bytes": sum(entry.size for entry in package.manifest.files.values()),
            "created": package.manifest.created,
            "verified": package.manifest.verified,
        }
        for package in packages
    ]
    for name, folder in foreign_packages().items():
        total = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        unknown = dict.fromkeys(("target", "created", "verified"))
        rows.append({"name": name, "folder": str(folder), "bytes": total, **unknown})
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        notice(f"no packages in {home() / 'packages'}; make one: phi3-onnx export")
        return
    words = {
        True: Colored("passed", "green"),
        False: Colored("FAILED", "bold red"),
        None: Colored("not run", "yellow"),
    }
    days = [row["created"][:10] if row["created"] else "not made here" for row in rows]
    cells = [
        (row["name"], size(row["bytes"]), day, words[row["verified"]]) for row, day in zip(rows, days, strict=True)
    ]
    print_lines(table_lines(cells, ("package", "size", "made", "verification"), right=(1,)))
