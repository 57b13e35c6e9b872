"""`phi3-onnx tune`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..configs.requirements import require_export
from .screen import notice, warn_of_clashing_wheels

if TYPE_CHECKING:
    from ..runtime.engines.load import EngineChoice


@click.command()
@click.argument("package")
@click.option(
    "--engine",
    type=click.Choice(["auto", "ort", "genai"]),
    default="auto",
    show_default=True,
    help="The engine to tune; what is found is used with that one alone.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1),
    default=120.0,
    show_default=True,
    help="How long it may take, but for loading and the comparison under way.",
)
@click.option(
    "--prepack",
    is_flag=True,
    help="Keep a copy of the weights for this processor, of twice their size: it loads faster, and processes share it.",
)
@click.option(
    "--int8",
    is_flag=True,
    help="Keep a copy that multiplies int8 by int8, of three times their size, where prompts are faster with it: on "
    "processors with AMX. Single texts decode more slowly, and logits change a little; how far is measured and said.",
)
@click.option("--forget", is_flag=True, help="Remove what was kept for this package on this machine, and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def command(
    package: str, engine: "EngineChoice", seconds: float, prepack: bool, int8: bool, forget: bool, as_json: bool
) -> None:
    """Find the threads, the size of a prompt's pieces and the costs of steps that suit a package on this machine's CPU.

    Settings are compared in turn. One is taken where it is faster and leaves the package's logits as they are, in every
    bit; a copy in int8 alone changes them. What is found is kept in the cache folder for this package, engine, version
    and processor; chat, generate, serve and bench take it where nothing else is asked for (--threads,
    PHI3_ONNX_THREADS, --speculate).
    """
    from ..configs import find_package
    from ..evaluate.tune import busy_cores, tune
    from ..runtime.proof.prepacked import forget_copies
    from ..runtime.proof.tuning import forget_tuning

    folder = find_package(package)
    if int8 and prepack:
        raise click.UsageError("--int8 lays its copy out for this processor already; leave --prepack out")
    if forget:
        count = forget_tuning(folder) + forget_copies(folder)
        click.echo("what was found is removed" if count else "nothing was kept for this package on this machine")
        return
    if int8:
        require_export()
    warn_of_clashing_wheels("cpu")
    if (busy := busy_cores()) > 0.2:
        notice(f"warning: other programs keep {busy:.1f} cores busy, and what is found suits that; close them")
    found = tune(folder, engine=engine, seconds=seconds, prepack=prepack, int8=int8, notify=notice)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        click.echo(f"{found.package}: {found.tuning} ({found.engine})")
        if found.copy:
            click.echo(str(found.copy))
    for line in found.left:
        notice(f"not tried: {line}")
    if not found.kept:
        notice("warning: the cache folder cannot be written to, so nothing is kept")
