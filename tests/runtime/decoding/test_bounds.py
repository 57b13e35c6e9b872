"""What a client may ask a grammar's compiler for, which would take all of the machine otherwise."""

import json
import time
from typing import Any

import pytest
from phi3_onnx.configs import UsageError
from phi3_onnx.runtime.decoding.bounds import repeats
from phi3_onnx.runtime.decoding.engine import Guidance, GuidanceKind


def deep(levels: int) -> str:
    return '{"not":' * levels + "{}" + "}" * levels


STRINGS = {"type": "array", "items": {"type": "string"}}
TOO_MUCH: list[tuple[GuidanceKind, Any, str]] = [
    ("json_schema", {**STRINGS, "minItems": 10**9}, "repetitions"),
    ("json_schema", {**STRINGS, "minItems": 10**7}, "repetitions"),
    ("json_schema", {**STRINGS, "maxItems": 1e300}, "repetitions"),
    ("json_schema", {"properties": {f"p{i}": {"type": "string", "maxLength": 9000} for i in range(9)}}, "repetitions"),
    ("json_schema", {"type": "string", "pattern": "(a{1,1000}){1,1000}"}, "repetitions"),
    ("json_schema", {"patternProperties": {"(a{1,1000}){1,1000}": {}}}, "repetitions"),
    ("json_schema", {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}}, "properties"),
    ("json_schema", {"anyOf": [{"properties": {f"k{i}": {}}} for i in range(2000)]}, "anyOf"),
    ("json_schema", {"enum": [str(i) for i in range(5000)]}, "enum"),
    ("json_schema", {"properties": {"a": {"anyOf": [{"const": i} for i in range(9000)]}}}, "anyOf"),
    ("json_schema", deep(100), "nesting"),
    ("json_schema", deep(60_000), "bytes|nesting"),
    ("json_schema", deep(30_000), "nesting"),
    ("json_schema", {"description": "x" * 10**6}, "bytes"),
    ("regex", "(a{1,1000}){1,1000}", "repetitions"),
    ("regex", "((a{100}){100}){100}", "repetitions"),
    ("regex", "a{1000}{1000}", "repetitions"),
    ("regex", "a{99999999999999999999999}", "repetitions"),
    ("regex", "(" * 1000 + ")" * 1000, "nesting"),
    ("lark_grammar", 'start: "a"{1000000}', "repetitions"),
    ("lark_grammar", 'start: "a"~1000000', "repetitions"),
    ("lark_grammar", 'start: "a"~1..1000000', "repetitions"),
    ("lark_grammar", "start: /(a{1,1000}){1,1000}/", "repetitions"),
    ("lark_grammar", 'start: %json {"type": "array", "minItems": 1000000000}', "repetitions"),
]


@pytest.mark.parametrize(("kind", "text", "bound"), TOO_MUCH)
def test_what_passes_a_bound_is_refused_at_once_with_its_name(kind: GuidanceKind, text: Any, bound: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(UsageError, match=rf"has .*({bound}).*limit|more than \d+ levels of ({bound})"):
        Guidance(kind, text if isinstance(text, str) else json.dumps(text))
    assert time.perf_counter() - begun < 5, "seconds, on a busy machine; the engine is not asked"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "x{}"),
        ("json_schema", {**STRINGS, "minItems": 1, "maxItems": 100}),
        ("json_schema", {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(200)}}),
        ("json_schema", {"enum": [f"country {i}" for i in range(3000)]}),
        ("json_schema", {"type": "integer", "minimum": 0, "maximum": 10**12}),
        ("json_schema", deep(20)),
        ("regex", r"\d{4}-\d{2}-\d{2}T[0-9{}]{1,8}"),
        ("regex", r"(ab{2,3}c){1,100} \{1000000\}"),
        ("lark_grammar", 'start: "a"{1,9} TEXT\nTEXT: /[^{\\s](?s:.)*/\n'),
    ],
)
def test_what_people_ask_for_is_taken(kind: GuidanceKind, text: Any) -> None:
    Guidance(kind, text if isinstance(text, str) else json.dumps(text))


@pytest.mark.parametrize("part", ["[", "[\\]", "(?:", "{1,", "~", "\\", "a{2}", "%json 1 ", "%json"])
def test_the_check_itself_takes_no_time(part: str) -> None:
    text = part * (250_000 // len(part))
    begun = time.process_time()
    for kind in ("regex", "lark_grammar"):
        try:
            Guidance(kind, text)
        except UsageError:
            continue
    assert time.process_time() - begun < 3


def test_nested_counts_are_multiplied_and_classes_hold_none() -> None:
    assert repeats("(a{1,10}b{7}){20}") == 200
    assert repeats("[{1000}]") == 0
    assert repeats(r"\{1000}") == 0
    assert repeats("a{3,}") == 3
