"""The one table of options: what derives from it agrees with it."""

import runpy
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
from phi3_onnx.cli.generate import command
from phi3_onnx.configs import UsageError
from phi3_onnx.configs.options import OPTIONS, SAMPLING, AnswerOptions, Range, Sampling, spelled
from phi3_onnx.runtime.decoding.engine import Guidance
from phi3_onnx.runtime.decoding.generation import Options
from phi3_onnx.runtime.server.requests import ChatRequest, CompletionRequest

DOCS = Path(__file__).parents[2] / "docs"


def test_every_option_is_declared_and_has_a_place():
    assert set(OPTIONS) == set(get_type_hints(AnswerOptions))
    assert set(SAMPLING) == {field.name for field in fields(Sampling)}
    assert set(OPTIONS) - set(SAMPLING) <= {field.name for field in fields(Options)}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_surface_has_it(name):
    flag = next(option for option in command.params if option.name == name)
    assert f"--{name.replace('_', '-')}" in flag.opts
    assert OPTIONS[name].help in str(flag.to_info_dict()["help"])
    assert name in ChatRequest.model_fields
    assert name in CompletionRequest.model_fields


def test_the_page_of_the_documentation_is_up_to_date():
    page = runpy.run_path(str(DOCS / "write_options.py"))["page"]()
    assert (DOCS / "options.md").read_text(encoding="utf-8") == page, "run docs/write_options.py"


@pytest.mark.parametrize(
    ("numbers", "text", "inside", "outside"),
    [
        (Range(0), "0 or more", (0, 3.5, 10**400), (-1, float("inf"), float("nan"))),
        (Range(0, open=True), "above 0", (0.1,), (0,)),
        (Range(0, 1, open=True), "above 0 and at most 1", (1,), (0, 1.1)),
        (Range(-2, 2), "-2 to 2", (-2, 2), (-3, 2.5)),
        (Range(0, zero="all tokens"), "0 (all tokens) or more", (0,), (-1,)),
    ],
)
def test_ranges(numbers, text, inside, outside):
    assert str(numbers) == text
    assert all(value in numbers for value in inside)
    assert not any(value in numbers for value in outside)


def test_a_value_out_of_range_is_named():
    with pytest.raises(UsageError, match=r"top_k must be 0 \(all tokens\) or more, got -1"):
        OPTIONS["top_k"].check(-1)


def test_guidance_takes_a_mask_where_the_search_behind_it_lacks_an_option():
    guidance = Guidance("regex", "a+")
    assert Options(Sampling(top_p=0.5), guidance=guidance).searchable
    for sampling in (Sampling(min_p=0.5), Sampling(logit_bias={1: 2})):
        assert not Options(sampling, guidance=guidance).searchable
    assert not Options(min_tokens=3, guidance=guidance).searchable


def test_other_spellings():
    assert spelled({"repeat_penalty": 1.1, "top_k": 3}) == {"repetition_penalty": 1.1, "top_k": 3}
    with pytest.raises(UsageError, match="repetition_penalty is given twice"):
        spelled({"repeat_penalty": 1.1, "repetition_penalty": 1.2})
