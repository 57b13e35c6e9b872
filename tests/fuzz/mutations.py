"""What hostile files hold: valid ones with values replaced, taken out, nested, doubled, cut off and overwritten."""

import copy
import json
import math
from typing import Any

from hypothesis import strategies as st

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    1.5,
    1e308,
    -0.0,
    math.nan,
    math.inf,
    2**31,
    2**63,
    10**4000,
    "",
    "text",
    "x" * 100_000,
    "\ud800",
    "\0",
    "../../etc/passwd",
    "%d%d%s{}",
    "(((a+)+)+)+$",
    [],
    [None],
    [[[[[]]]]],
    [0] * 10_000,
    {},
    {"": None},
    {"text": {"text": {}}},
)
DEEP = 100_000


@st.composite
def json_texts(draw: st.DrawFn, valid: str) -> bytes:
    """Return the text of a JSON file that was valid before."""
    table = json.loads(valid)
    for _ in range(draw(st.integers(1, 3))):
        table = _changed(draw, table)
    return draw(binaries(json.dumps(table).encode("utf-8"))) if draw(st.integers(0, 9)) == 0 else _dump(table)


def _dump(table: Any) -> bytes:
    return json.dumps(table, ensure_ascii=True).encode("utf-8")


def _changed(draw: st.DrawFn, table: Any) -> Any:
    """Return a table in which something, at any depth, is something else."""
    places = _places(table, ())
    place = draw(st.sampled_from(places))
    value = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
    if not place:
        return value
    table = copy.deepcopy(table)
    parent = table
    for step in place[:-1]:
        parent = parent[step]
    how = draw(st.sampled_from(("replace", "replace", "replace", "remove", "wrap", "add")))
    if how == "remove":
        del parent[place[-1]]
    elif how == "wrap":
        parent[place[-1]] = [parent[place[-1]]]
    elif how == "add" and isinstance(parent, dict):
        parent[draw(st.sampled_from(("", "unknown", "0", "__class__")))] = value
    else:
        parent[place[-1]] = value
    return table


def _places(table: Any, at: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Return the way to each value; of long lists and objects, to the first few."""
    found = [at]
    steps = (
        list(table)[:40] if isinstance(table, dict) else range(min(len(table), 4)) if isinstance(table, list) else ()
    )
    for step in steps:
        found += _places(table[step], (*at, step))
    return found


@st.composite
def binaries(draw: st.DrawFn, valid: bytes, header: int = 4096) -> bytes:
    """Return the bytes of a file that was valid before; most changes lie within its first `header` bytes."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, min(header, len(data)) - 1)))
        how = draw(st.sampled_from(("overwrite", "number", "cut", "insert", "remove", "deep")))
        if how == "overwrite":
            new = draw(st.binary(min_size=1, max_size=8))
            data[at : at + len(new)] = new
        elif how == "number":
            width = draw(st.sampled_from((1, 4, 8)))
            number = draw(st.sampled_from((0, 1, 2, 0x7F, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)))
            data[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
        elif how == "cut":
            del data[at:]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=64))
        elif how == "remove":
            del data[at : at + draw(st.integers(1, 64))]
        elif draw(st.integers(0, 9)) == 0:
            data[at:at] = draw(st.sampled_from((b"[", b'{"a":', b"(", b"{{", b"[[\n"))) * DEEP
    return bytes(data)


_PIECES = (
    "{% for m in messages %}",
    "{% endfor %}",
    "{{ m['role'] }}",
    "{{ m.content|tojson }}",
    "{% if add_generation_prompt %}",
    "{% else %}",
    "{% endif %}",
    "{% set ns = namespace(x='ab') %}",
    "{% set ns.x = ns.x ~ ns.x %}",
    "{% for i in range(99999) %}",
    "{{ ns.x * 999999 }}",
    "{{ (9 ** 9) ** 9 }}",
    "{{ 'x'.center(10 ** 9) }}",
    "{{ '%*d' % (10 ** 9, 1) }}",
    "{{ messages|map('upper')|list|sort }}",
    "{{ messages|tojson(indent=99999999) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ strftime_now('%Y' * 99999) }}",
    "{{ raise_exception('no') }}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{{ lipsum(n=99999) }}",
    "{{ ns.x|replace('a', ns.x * 9999) }}",
    "{{ ns.x.split('')|batch(0)|list }}",
    "{{ 1 / 0 }}",
    "{{ none.x.y }}",
    "{{ dict(a=1)|urlencode|wordwrap(0) }}",
    "{% raw %}",
    "{#",
    "text",
)


def templates() -> st.SearchStrategy[str]:
    """Return chat templates of pieces that fit, and of those that do not."""
    return st.lists(st.sampled_from(_PIECES), max_size=8).map("".join)
