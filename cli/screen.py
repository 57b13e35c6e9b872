"""Where words go: results to stdout, notices and progress to stderr, so that pipes work."""

import os
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # chat and generate print notices too, and start faster without rich
    from rich.console import Console


def quiet() -> bool:
    """Return whether `--quiet` was given: results and errors, and nothing else."""
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().params.get("quiet"))


def notice(text: str) -> None:
    """Print a line for the person at the terminal, not for the pipe."""
    if not quiet():
        reply(text)


def warn_of_clashing_wheels(provider: str) -> None:
    """Print a notice where ONNX Runtime wheels overwrite each other, which the CPU runs with all the same.

    A provider that was named and is not the CPU's is refused there, with the same words: it gets no notice beside them.
    """
    from ..runtime.providers.names import canonical
    from ..runtime.providers.wheels import wheel_warning

    if not quiet() and canonical(provider) in ("auto", "cpu") and (warning := wheel_warning()):
        notice(f"warning: {warning}")


def reply(text: str) -> None:
    """Print a line that was asked for, beside the results in the pipe."""
    click.echo(text, err=True)


def console(*, stderr: bool = False) -> "Console":
    """Return rich's console for stdout or stderr: coloured on a terminal and with FORCE_COLOR, never with NO_COLOR.

    What is not a terminal has no width: lines are not folded there, which would make them hard to find again.
    """
    from rich.console import Console

    width = None if is_terminal(stderr=stderr) else 500
    colors = None if os.environ.get("NO_COLOR") else "auto"
    return Console(stderr=stderr, highlight=False, width=width, color_system=colors)


def is_terminal(*, stderr: bool = False) -> bool:
    """Return whether stdout or stderr is a terminal, on which lines can change; FORCE_COLOR makes none of a file."""
    return (sys.stderr if stderr else sys.stdout).isatty()
