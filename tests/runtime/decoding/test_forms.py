"""Choices and GBNF grammars become guidance that means the same."""

import re

import pytest
from phi3_onnx.configs import UsageError
from phi3_onnx.runtime.decoding.engine import Guidance
from phi3_onnx.runtime.decoding.forms import lark_of

llguidance = pytest.importorskip("llguidance", reason="llguidance is not installed")

CHOICES = ["yes", "a b", "c.d*", "{3}", "[x]|(y)", "line\nbreak", "über", "/x/ #&~-^$", "back\\slash", '"q"']
GBNF = r"""
# a list of moves, as in llama.cpp's examples
root  ::= (move " ")+ end-mark?
move  ::= [a-h] [1-8] | "O-O"
end-mark ::= "\u0022" [^"\x41-\x5a\u00e9]{1,2} "\u005c\u005b"
"""
MOVES = re.compile(r'(?:(?:[a-h][1-8]|O-O) )+(?:"[^"A-Zé]{1,2}\\\[)?', re.DOTALL)


def accepts(guidance: Guidance, text: str) -> bool:
    """Return whether a text is one that the guidance allows, whole."""
    kinds = {"regex": "grammar_from_regex", "lark_grammar": "grammar_from_lark"}
    grammar = getattr(llguidance.LLMatcher, kinds[guidance.kind])(guidance.text)
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def test_a_choice_takes_its_texts_and_no_others() -> None:
    guidance = Guidance.one_of(CHOICES)
    assert all(accepts(guidance, text) for text in CHOICES)
    for text in ("ye", "yess", "cxd", "{4}", "333", "x", "a  b", "back\\\\slash", "yes|a b"):
        assert not accepts(guidance, text), text


@pytest.mark.parametrize(
    "text", ["e2 e4 ", "O-O h8 ", 'a1 "ab\\[', 'a1 "\n\\[', "", "e9 ", "e2", 'a1 "A\\[', 'a1 "é\\[']
)
def test_a_grammar_in_gbnf_means_what_it_says(text: str) -> None:
    assert accepts(Guidance.grammar(GBNF), text) == bool(MOVES.fullmatch(text))


def test_an_escaped_backslash_begins_no_other_escape() -> None:
    assert accepts(Guidance.grammar(r'root ::= "\\u0041\x0a" [\x5d\\u]'), "\\u0041\n]")


def test_a_grammar_in_lark_stays_as_it_is() -> None:
    for text in ('start: "a" | "b"', '%llguidance {}\nstart: x\nx: "::="'):
        assert lark_of(text) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "nor GBNF: No 'root' rule"),
        ("rot ::= [a]", "nor GBNF: No 'root' rule"),
        ('root ::= "a', "nor GBNF: Unexpected end"),
        ("root ::= other", "nor GBNF: Rule 'other' not found"),
        (r'root ::= "\ud800"', "is no character"),
        ("root ::= " + "(" * 5000, "levels of nesting"),
        ('root ::= "a"{1,100000}', "more than the limit"),
        ("".join(f'r{i} ::= "{"x" * 400}"\n' for i in range(500)), "takes too long to translate"),
        ("root ::= " + "x" * 300_000, "bytes"),
    ],
)
def test_what_is_neither_or_too_large_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        Guidance.grammar(text)


@pytest.mark.parametrize("texts", [[], [""], ["a", ""], ["x"] * 4001])
def test_a_choice_that_is_none_is_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="a choice must"):
        Guidance.one_of(texts)
