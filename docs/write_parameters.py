"""Write `docs/parameters.md`, what the server does with each parameter of a request, from the table in its code.

Run it after a change there: `python docs/write_parameters.py`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from phi3_onnx.runtime.server.parameters import PLACES, WARNING_HEADER, Parameter, Places, path_of
from phi3_onnx.runtime.server.protocols.anthropic_requests import ANTHROPIC
from phi3_onnx.runtime.server.protocols.ollama_requests import OLLAMA
from phi3_onnx.runtime.server.protocols.responses_requests import RESPONSES

PAGE = Path(__file__).with_name("parameters.md")
_HEAD = f"""\
# Parameters of a request

What the server does with the parameters of `POST /v1/chat/completions`, `POST /v1/completions`, `POST /tokenize` and
`POST /detokenize`. A value of null counts as not given everywhere. A name that is on none of these lists is ignored,
and the answer has a header
`{WARNING_HEADER}` that names it; with `phi3-onnx serve --strict` it is refused with status 400. A model's name that is
not the served one gets the same header, or status 404. The ranges of the options are in [options.md](options.md).
`[]` stands for the entries of a list. Protocols besides OpenAI's follow, each with a table of its own. This page is
written by `docs/write_parameters.py`.
"""
_USED = """
## Used
"""
_HINTS = """
## Hints

Accepted, since the answer is the same with and without them. At log level `debug` the server says once a client that it
sends one.
"""
_REFUSED = """
## Refused

They would change the answer in a way that is not implemented: status 400 with the code `unsupported_parameter`, unless
the value asks for nothing.
"""
_PROTOCOLS = {"OpenAI's responses": RESPONSES, "Anthropic": ANTHROPIC, "Ollama": OLLAMA}
_TOPS = ("chat", "completions")
_OF = {
    "stream_options": "both",
    "structured_outputs": "both",
    "response_format": "both",
    "response_format.json_schema": "both",
    "tokenize": "tokenize",
    "detokenize": "detokenize",
}


def page() -> str:
    """Return the page."""
    rows = list(_rows())
    used = _table(("parameter", "of", "what it does"), [cells for kind, cells in rows if kind == "used"])
    hints = _table(("parameter", "of", "why"), [cells for kind, cells in rows if kind == "hint"])
    refused = _table(
        ("parameter", "of", "asks for nothing", "why"), [cells for kind, cells in rows if kind == "refused"]
    )
    further = [part for name, places in _PROTOCOLS.items() for part in (f"\n## {name}\n", _of(places))]
    return "".join([_HEAD, _USED, used, _HINTS, hints, _REFUSED, refused, *further])


def _of(places: Places) -> str:
    """Return the table of a further protocol."""
    rows = [
        (
            f"`{path_of(place, entry.name)}`",
            place if place.startswith("/") else "all",
            entry.kind,
            _neutral(entry),
            entry.note,
        )
        for place, table in places.items()
        for entry in table.values()
    ]
    return _table(("parameter", "of", "kind", "asks for nothing", "what it does, or why not"), rows)


def _rows() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the kind and the cells of each parameter: once where both bodies have the same."""
    first, second = (PLACES[top] for top in _TOPS)
    for name, entry in first.items():
        yield entry.kind, _cells(entry, "both" if second.get(name) == entry else "chat")
    for name, entry in second.items():
        if first.get(name) != entry:
            yield entry.kind, _cells(entry, "completions")
    for place, table in PLACES.items():
        if place not in _TOPS:
            for entry in table.values():
                yield entry.kind, _cells(entry, _OF.get(place, "chat"), place)


def _cells(entry: Parameter, of: str, place: str = "chat") -> tuple[str, ...]:
    name = f"`{path_of(place, entry.name)}`"
    return (name, of, *([_neutral(entry)] if entry.kind == "refused" else ()), entry.note)


def _neutral(entry: Parameter) -> str:
    return ", ".join(f"`{json.dumps(value)}`" for value in entry.neutral) or "null"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
