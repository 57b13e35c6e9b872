"""The command line: one module per verb, imported when the verb runs."""

import sys

try:
    import importlib
    import logging
    import os
    from difflib import get_close_matches
    from pathlib import Path
    from types import MappingProxyType

    import click

    from ..configs import Phi3OnnxError
    from ..configs.errors import first_line, is_out_of_memory
    from .versions import print_versions
except (MemoryError, ImportError, OSError) as error:
    # Before `main`, and perhaps without `is_out_of_memory`: what it knows of, in short.
    if isinstance(error, MemoryError) or "failed to map segment" in str(error) or "annot allocate memory" in str(error):
        sys.exit("phi3-onnx: there is not enough memory to start")
    raise

# Verb -> module of this folder that has its `command`. The order is that of the help page.
VERBS = MappingProxyType(
    {
        "demo": "demo",
        "export": "export",
        "quantize": "quantize",
        "verify": "verify",
        "matrix": "matrix",
        "chat": "chat",
        "generate": "generate",
        "serve": "serve",
        "evaluate": "evaluate",
        "bench": "bench",
        "tune": "tune",
        "targets": "targets",
        "list": "list_packages",
        "alias": "alias",
        "show": "show",
        "rm": "remove",
        "pull": "pull",
        "push": "push",
        "sign": "sign",
        "doctor": "doctor",
    }
)


class _Verbs(click.Group):
    """Imports a verb's module only when it is named, so that `--help` and light verbs start at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        return importlib.import_module(f".{VERBS[cmd_name]}", __package__).command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS and (near := get_close_matches(args[0], VERBS, n=1)):
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{near[0]}'?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(verb, SUMMARIES[verb]) for verb in VERBS]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


# One line a verb, here so that the help page needs none of the modules.
SUMMARIES = MappingProxyType(
    {
        "demo": "Fetch a small real model, export it, verify it and ask it something.",
        "export": "Make an ONNX package of a Phi-3 checkpoint.",
        "quantize": "Quantize an unquantized package or a checkpoint.",
        "verify": "Check a package against the model that it was made from.",
        "matrix": "Verify every target on every provider, in one table.",
        "chat": "Talk to a package.",
        "generate": "Answer one prompt.",
        "serve": "Serve a package over HTTP, with OpenAI's protocol.",
        "evaluate": "Measure a package on a text of your own.",
        "bench": "Measure the speed of packages.",
        "tune": "Find what runs a package fastest on this machine.",
        "targets": "List the kinds of package that can be made.",
        "list": "List the packages in the store.",
        "alias": "Give packages names of your own.",
        "show": "Describe a package.",
        "rm": "Remove packages from the store.",
        "pull": "Fetch a package from the Hugging Face hub.",
        "push": "Publish packages on the Hugging Face hub.",
        "sign": "Sign what a package was made from, its files and its figures.",
        "doctor": "Check providers, drivers and versions, and print the commands that fix problems.",
    }
)


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "PHI3_ONNX"},
    help="Phi-3 to verified ONNX packages, and one runtime for CUDA, DirectML and CPU.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_versions,
    help="Print the versions of this program and of its dependencies, and exit.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error, and log each step.")
@click.option("--quiet", is_flag=True, help="Print only results and errors.")
def root(debug: bool, quiet: bool) -> None:
    """Set up what every verb shares."""
    # `quiet` is read where notices are printed, see `screen`; here it stops those of the library.
    logging.getLogger("phi3_onnx").setLevel(logging.ERROR if quiet else logging.NOTSET)
    if debug:
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")


def _debug() -> bool:
    return "--debug" in sys.argv or click.BOOL.convert(os.environ.get("PHI3_ONNX_DEBUG") or "0", None, None)


def _open_closed() -> None:
    """Give streams that came closed (`<&-`) something empty, as everything expects them to be there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  # until the end


def _tell(error: Exception) -> None:
    """Print the line of an error that the system gave."""
    if is_out_of_memory(error):
        line = f"there is not enough memory: {first_line(error)}"
    else:
        assert isinstance(error, OSError)
        line = f"{error.filename or 'cannot read or write'}: {error.strerror or error}"  # a stream has no file name
    click.echo(f"phi3-onnx: {line}", err=True)
    if isinstance(error, OSError):
        # What is still to be written would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def main() -> None:
    """Run the command line: one line on stderr for each error that has a known cause, and its exit code."""
    _open_closed()
    try:
        code = root(standalone_mode=False)
        sys.stdout.flush()
    except Phi3OnnxError as error:
        if _debug():
            raise
        click.echo(f"phi3-onnx: {error}", err=True)
        code = error.exit_code
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        code = 141
    except (MemoryError, ImportError, RuntimeError, OSError) as error:
        if _debug() or not (isinstance(error, OSError) or is_out_of_memory(error)):
            raise
        _tell(error)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
