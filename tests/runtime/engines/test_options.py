"""Options of an answer on every engine: the same tokens with a seed, and what each option says holds."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.runtime import Guidance, Model, load

ENGINES = ("genai", "onnxruntime", "together")
ASK = "What is the capital of France?"


@pytest.fixture(scope="module")
def models(tiny_package: Callable[..., Path]) -> Iterator[dict[str, Model]]:
    loaded = {engine: load(tiny_package("gqa", "cpu-int4-rtn"), engine=engine) for engine in ENGINES}  # pyright: ignore[reportArgumentType]
    yield loaded
    for model in loaded.values():
        model.close()


@pytest.mark.parametrize(
    "options",
    [
        {"typical_p": 0.4},
        {"min_tokens": 20},
        {"ignore_eos": True},
        {"repeat_penalty": 1.5},
        {"logit_bias": {100: 3.0, 101: -2.0}},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"min_p": 0.1},
    ],
)
def test_draws_are_the_same_on_engines_that_run_one_graph(models: dict[str, Model], options: dict[str, Any]) -> None:
    options = {"temperature": 1.0, "seed": 4, "max_tokens": 24, **options}
    # The engine that decodes together has a graph of its own, whose activations are rounded otherwise.
    first, second = (models[engine].generate(ASK, **options).token_ids for engine in ENGINES[:2])
    assert first == second


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bias_bars_and_forces_tokens(models: dict[str, Model], engine: str) -> None:
    def tokens(**options: Any) -> tuple[int, ...]:
        return models[engine].generate(ASK, temperature=0, max_tokens=12, **options).token_ids

    plain = tokens()
    assert plain[0] not in tokens(logit_bias={plain[0]: -100})
    assert set(tokens(logit_bias={77: 100})) == {77}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_end_comes_when_it_may(models: dict[str, Model], engine: str) -> None:
    end = min(models[engine].package.end_tokens)

    def tokens(**options: Any) -> tuple[int, ...]:
        return models[engine].generate(ASK, temperature=0, max_tokens=12, logit_bias={end: 100}, **options).token_ids

    assert tokens() == (end,)
    later, never = tokens(min_tokens=5), tokens(ignore_eos=True)
    assert len(later) == 6 and later[-1] == end
    assert len(never) == 12 and end not in never


@pytest.mark.parametrize("options", [{"min_p": 0.2}, {"logit_bias": {70: 2.0}}, {"typical_p": 0.5}, {"min_tokens": 3}])
@pytest.mark.parametrize("engine", ENGINES)
def test_guidance_holds_with_every_option(models: dict[str, Model], engine: str, options: dict[str, Any]) -> None:
    options = {"guidance": Guidance("regex", "[ab]{4}"), "temperature": 1.0, "seed": 3, "max_tokens": 30, **options}
    first, again = (models[engine].generate(ASK, **options) for _ in range(2))
    assert first.text == again.text and first.finish_reason == "stop"
    assert len(first.text) == 4 and set(first.text) <= set("ab")
