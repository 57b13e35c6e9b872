"""Guidance as a mask on logits, by the token ids of a package's own tokenizer."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phi3_onnx.configs import UsageError
from phi3_onnx.runtime.decoding.engine import Guidance
from phi3_onnx.runtime.decoding.guide import Guides
from phi3_onnx.runtime.decoding.schemas import closed, tight_schema
from phi3_onnx.runtime.package import open_package
from phi3_onnx.runtime.text.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def parts(tiny_package: Callable[..., Path]) -> tuple[Guides, Tokenizer, frozenset[int]]:
    package = open_package(tiny_package("gqa"))
    tokenizer = Tokenizer(package.folder)
    return Guides(tokenizer, package.contract.vocab_size, package.end_tokens), tokenizer, package.end_tokens


def draw(parts: tuple[Guides, Tokenizer, frozenset[int]], guidance: Guidance, seed: int) -> str:
    """Return a text of random tokens under guidance."""
    guides, tokenizer, ends = parts
    guide, random, tokens = guides.guide(guidance), np.random.default_rng(seed), list[int]()
    for _ in range(200):
        logits = guide.mask(random.normal(0, 1, 512).astype(np.float32))
        token = int(logits.argmax())
        assert np.isfinite(logits[token])
        if token in ends:
            return tokenizer.decode(tokens)
        guide.take(token)
        tokens.append(token)
    raise AssertionError("there was no end")


@pytest.mark.parametrize("seed", range(8))
def test_random_tokens_keep_to_each_kind(parts: tuple[Guides, Tokenizer, frozenset[int]], seed: int) -> None:
    assert re.fullmatch("[0-9]{2,4}(cat|dog)", draw(parts, Guidance("regex", "[0-9]{2,4}(cat|dog)"), seed))
    found = json.loads(draw(parts, Guidance("json_schema", json.dumps(SCHEMA)), seed))
    assert found["a"] in ("x", "y")
    assert isinstance(found["b"], bool)
    assert draw(parts, Guidance("lark_grammar", 'start: "yes" | "no"'), seed) in ("yes", "no")


def test_what_makes_no_sense_is_refused(parts: tuple[Guides, Tokenizer, frozenset[int]]) -> None:
    for guidance in (
        Guidance("regex", "(["),
        Guidance("lark_grammar", "start: nothing"),
        Guidance("json_schema", '{"type": "no such"}'),
    ):
        with pytest.raises(UsageError, match=f"the {guidance.kind} is not understood"):
            parts[0].guide(guidance)


def test_schemas_leave_no_white_space_free_unless_they_ask_for_it() -> None:
    assert json.loads(tight_schema("{}"))["x-guidance"]["whitespace_flexible"] is False
    assert json.loads(tight_schema('{"x-guidance": {}}'))["x-guidance"] == {}


@pytest.mark.parametrize("seed", range(4))
def test_an_object_holds_the_keys_that_its_schema_lists(
    parts: tuple[Guides, Tokenizer, frozenset[int]], seed: int
) -> None:
    inner = {"type": "object", "properties": {"c": {"type": "boolean"}}, "required": ["c"]}
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/inner"}, "b": {"enum": [1, 2]}},
        "required": ["a"],
    }
    text = draw(parts, Guidance("json_schema", json.dumps({**schema, "$defs": {"inner": inner}})), seed)
    found = json.loads(text)
    assert found.keys() <= {"a", "b"}
    assert found["a"].keys() == {"c"}


def _object(**more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"type": "integer"}}, **more}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},  # any keys, as it lists none
        _object(additionalProperties=True),
        _object(additionalProperties={"type": "string"}),
        _object(patternProperties={"^x": {}}),
        _object(required=["a", "b"]),  # nothing could fit it
        _object(minProperties=2),
        {"allOf": [_object(), _object(required=["a"])]},
        {"$ref": "#/$defs/b", "properties": {"c": {}}, "$defs": {"b": _object()}},
        {"properties": {"c": {}}, "anyOf": [_object(), {}]},
        {"enum": [_object()]},  # a constant, no schema
        {"type": "integer"},
    ],
)
def test_what_says_more_of_its_keys_stays_as_it_is(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


def test_objects_are_closed_wherever_they_stand() -> None:
    shut = _object(additionalProperties=False)
    for place in (
        lambda schema: {"type": "array", "items": schema},
        lambda schema: {"prefixItems": [schema]},
        lambda schema: {"anyOf": [schema, {"type": "null"}]},
        lambda schema: {"allOf": [schema]},
        lambda schema: {"$ref": "#/$defs/b", "$defs": {"b": schema}},
        lambda schema: {"additionalProperties": schema},
    ):
        assert closed(place(_object())) == place(shut)
    assert closed(_object(properties={"a": _object()})) == _object(properties={"a": shut}, additionalProperties=False)


def test_an_ambiguous_grammar_is_given_up_early(parts: tuple[Guides, Tokenizer, frozenset[int]]) -> None:
    # Each rule can be split in many ways, so that the parser holds all of them for each token that may come next.
    rules = [f"r{i}: r{i} r{(3 * i + 1) % 250} | r{(i + 1) % 250} r{(7 * i) % 250} | /[a-z]/" for i in range(250)]
    guide = parts[0].guide(Guidance("lark_grammar", "start: r0\n" + "\n".join(rules)))
    with pytest.raises(UsageError, match="limit 10000"):
        guide.mask(np.zeros(512, np.float32))
