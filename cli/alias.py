"""`phi3-onnx alias`."""

import json

import click

from .screen import notice


@click.command()
@click.argument("name", required=False)
@click.argument("package", required=False)
@click.option("--remove", is_flag=True, help="Forget the name.")
@click.option("--json", "as_json", is_flag=True, help="Print the aliases as JSON.")
def command(name: str | None, package: str | None, remove: bool, as_json: bool) -> None:
    """Give a package a name of your own, or list such names.

    Every verb takes NAME in place of PACKAGE, and so does a server of many models. A name that is given again stands
    for the new package.
    """
    from ..configs import UsageError, find_package
    from ..configs.aliases import read_aliases, write_aliases
    from ..configs.store import home, name_in_store

    aliases = read_aliases(home())
    if name is None:
        if remove:
            raise UsageError("name the alias to remove")
        if as_json:
            click.echo(json.dumps(aliases, indent=1))
            return
        for known, target in sorted(aliases.items()):
            click.echo(f"{known}  {target}")
        if not aliases:
            notice("no aliases; make one: phi3-onnx alias NAME PACKAGE")
        return
    if remove:
        if package is not None or name not in aliases:
            raise UsageError(f"{name!r:.80} is no alias" if package is None else "--remove takes a name alone")
        write_aliases(home(), {known: target for known, target in aliases.items() if known != name})
        notice(f"removed {name}")
        return
    if package is None:
        raise UsageError(f"name the package that {name!r:.80} is to stand for")
    folder = find_package(package)
    target = name_in_store(folder) or str(folder.resolve())
    write_aliases(home(), {**aliases, name: target})
    notice(f"{name} is {target}")
