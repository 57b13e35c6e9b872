"""Write `docs/options.md`, the table of the options of an answer, from their declarations.

Run it after a change there: `python docs/write_options.py`.
"""

import math
from pathlib import Path

from phi3_onnx.configs.options import OPTIONS, Option, Range

PAGE = Path(__file__).with_name("options.md")
_HEAD = """\
# Options of an answer

They have the same names in Python (`model.generate(prompt, top_p=0.9)`), in the server's requests, in the lines of
`generate --jsonl` and in chat (`/set top_p 0.9`); on the command line they are flags (`--top-p 0.9`). Where nothing is
said about how to draw, the model's `generation_config.json` decides, and that is greedy unless it asks for sampling.
Draws with a seed are the same on every engine. With guidance, ONNX Runtime GenAI draws itself; where an option is not
one of its own ("by a mask"), and in `serve`, guidance is a mask on the logits instead, which needs the package
`llguidance`. (Without it, `serve` leaves guidance to GenAI, which holds all answers up while it compiles.) On the
command line numbers by token id are `--logit-bias 15043=-100`, which may be repeated. This page is written by
`docs/write_options.py`.

| option | type | range | in the server | default | with guidance | effect |
|---|---|---|---|---|---|---|
"""
_KINDS = {
    float: "number",
    int: "whole number",
    bool: "true or false",
    tuple: "text, or several",
    dict: "numbers by token id",
}


def page() -> str:
    """Return the page."""
    return _HEAD + "".join([_row(option) for option in OPTIONS.values()])


def _row(option: Option) -> str:
    cells = (
        f"`{option.name}`",
        _KINDS[option.kind],
        _range(option.range),
        _range(option.server) if option.server else "the same",
        option.default,
        "yes" if option.guided else "by a mask",
        " ".join([option.help, *(f"Also called `{name}`." for name in option.spellings)]),
    )
    return f"| {' | '.join(cells)} |\n"


def _range(numbers: Range) -> str:
    return str(numbers) if numbers.least > -(2**63) else "any of 64 bits" if math.isfinite(numbers.least) else "any"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
