"""Write `docs/reference/cli.md`, the command line, from click: `python docs/write_cli.py`, after a change there."""

from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click
from phi3_onnx.cli import SUMMARIES, VERBS, root

PAGE = Path(__file__).parent / "reference" / "cli.md"
_HEAD = """\
# Command line

`phi3-onnx [--quiet] [--debug] VERB ...`. Every option can be an environment variable: `PHI3_ONNX_`, the verb, the
option, such as `PHI3_ONNX_EXPORT_TARGET=cuda-fp16`. Results go to stdout, everything else to stderr. Exit codes: 0 for
success, 1 for what failed or missed a threshold, 2 for a name or an option that cannot be meant so, 3 for a provider
that cannot run here or computes wrongly, 130 for Ctrl-C. Each verb has `-h`. This page is written by
`docs/write_cli.py`.
"""


def page() -> str:
    """Return the page."""
    return "\n".join([_HEAD, *(line for verb in VERBS for line in _verb(verb))])


def _verb(verb: str) -> Iterator[str]:
    context = click.Context(root)
    command = root.get_command(context, verb)
    assert command is not None
    context = click.Context(command, info_name=f"phi3-onnx {verb}")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## {verb}\n\n{SUMMARIES[verb]}\n\n```text\nphi3-onnx {verb} {usage}\n```\n"
    _, _, more = cleandoc(command.help or "").partition("\n\n")  # the first paragraph is the summary
    if more:
        yield f"{more}\n"
    yield "| option | what it does |\n|---|---|"
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option) and "--help" not in parameter.opts:
            yield f"| `{' '.join(record[0].replace('|', ', ').split())}` | {_cell(record[1])} |"
    yield ""


def _cell(text: str) -> str:
    """Return a help text for a cell: brackets would be links, and `*` and `<` marks."""
    plain = " ".join(text.split()).translate(str.maketrans("[]", "()"))
    return plain.replace("|", ", ").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
