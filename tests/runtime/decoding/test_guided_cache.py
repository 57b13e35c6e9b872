"""A KV cache under guidance: kept for the same guidance, and always rewound, which begins the guidance anew."""

from pathlib import Path

import pytest
from phi3_onnx.runtime import Guidance, Sampling
from phi3_onnx.runtime.decoding.engine import GuidedDraws
from phi3_onnx.runtime.decoding.kvcache import KvCache
from phi3_onnx.runtime.text.tokenizer import Tokenizer
from scripted import ScriptedEngine, scripted_engine, write_scripted_package

GREEDY, HOT = Sampling(temperature=0), Sampling(temperature=1)
REGEX = Guidance("regex", "a+")
PROMPT = [1, 2, 3, 4]


@pytest.fixture
def engine(tmp_path: Path) -> ScriptedEngine:
    write_scripted_package(tmp_path)
    return scripted_engine(Tokenizer(tmp_path), ["ab", "ab"])


def answered(engine: ScriptedEngine, guided: GuidedDraws) -> KvCache:
    cache = KvCache(engine, context_length=100)
    cache.reserve(50, guided=guided)
    list(cache.prefill(PROMPT))
    for _ in range(2):  # the second runs the first
        cache.choose_token()
    return cache


def test_the_same_guidance_goes_on_with_its_cache(engine: ScriptedEngine) -> None:
    cache = answered(engine, GuidedDraws(REGEX, GREEDY, 7))
    cache.reserve(50, guided=GuidedDraws(REGEX, GREEDY, 7))  # greedy: the seed changes nothing
    assert len(engine.opened) == 1 and len(cache.tokens) == 5


@pytest.mark.parametrize(
    "other",
    [None, GuidedDraws(Guidance("regex", "b+"), GREEDY, None), GuidedDraws(REGEX, HOT, None)],
)
def test_other_guidance_begins_anew(engine: ScriptedEngine, other: GuidedDraws | None) -> None:
    cache = answered(engine, GuidedDraws(REGEX, GREEDY, None))
    cache.reserve(50, guided=other)
    assert len(engine.opened) == 2 and cache.tokens == () and cache.guided == other


def test_a_seed_begins_anew(engine: ScriptedEngine) -> None:
    cache = answered(engine, GuidedDraws(REGEX, HOT, 7))
    cache.reserve(50, guided=GuidedDraws(REGEX, HOT, 7))
    assert len(engine.opened) == 2


def test_a_prompt_that_goes_on_after_the_answer_still_rewinds(engine: ScriptedEngine) -> None:
    cache = answered(engine, GuidedDraws(REGEX, GREEDY, None))
    longer = [*cache.tokens, 8, 9]
    assert cache.shared(longer) == len(cache.tokens) - 1
    assert cache.shared([50]) == 0
    list(cache.prefill(longer))
    assert engine.runs[-1] == (4, 3)  # one token of the answer again, and the two new ones
