"""Guidance as a mask on logits, by the token ids of a package's own tokenizer."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from phi3_onnx.configs import UsageError
from phi3_onnx.runtime.decoding.engine import Guidance
from phi3_onnx.runtime.decoding.guide import Guides, tight_schema
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
