"""The test text, and the passages that are chosen from it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from phi3_onnx.configs import ModelConfig, parse_model_config
from phi3_onnx.configs.model import LongRope
from phi3_onnx.evaluate.parity import corpus
from phi3_onnx.evaluate.parity.corpus import (
    LONGEST,
    TOKENS,
    Lengths,
    Passage,
    cut_prompt,
    plan_passages,
    within_window,
)

Make = Callable[..., Path]

PREFIX = np.array([1])
IDS = np.arange(10, 5010)


@pytest.fixture
def config() -> ModelConfig:
    return parse_model_config(
        {
            "model_type": "phi3",
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 4096,
        }
    )


def with_longrope(config: ModelConfig, original: int, longest: int) -> ModelConfig:
    rope = LongRope((1.0,) * 48, (2.0,) * 48, original)
    return replace(config, longrope=rope, max_position=longest)


def plan(config: ModelConfig, ids: np.ndarray = IDS, prefix: np.ndarray = PREFIX) -> tuple[list[Passage], list[str]]:
    return plan_passages(Lengths.of(config), ids, prefix)


def lengths(passages: list[Passage]) -> list[int]:
    return [len(passage.ids) for passage in passages]


def test_a_plain_model_reads_one_stretch_after_the_prefix(config: ModelConfig) -> None:
    (passage,), skipped = plan(config)
    assert list(passage.ids) == [1, *range(10, 10 + TOKENS - 1)]
    assert passage.ids.dtype == np.int64
    assert TOKENS >= 2048
    assert skipped == []


def test_phi3_minis_window_is_left_in_the_first_run_and_again_through_the_cache(config: ModelConfig) -> None:
    (passage,), _ = plan(replace(config, sliding_window=2047))
    assert len(passage.ids) == 2047 + 256
    assert 2047 + 100 < passage.first < len(passage.ids) - 100
    assert "2047" in passage.purpose


def test_text_is_added_until_there_is_enough(config: ModelConfig) -> None:
    passages, _ = plan(replace(config, sliding_window=31))
    assert lengths(passages)[0] == 31 + 256
    assert sum(lengths(passages)) == TOKENS
    # One stretch follows the other; nothing is read twice.
    assert len(set(np.concatenate([passage.ids[1:] for passage in passages]))) == TOKENS - len(passages)


def test_longrope_is_tried_on_both_sides_of_its_switch(config: ModelConfig) -> None:
    passages, _ = plan(with_longrope(config, 4096, 131072))
    assert lengths(passages) == [4096 + 128, TOKENS]
    assert passages[0].first == 4097
    # The text is used up, and starts again.
    assert list(passages[1].ids[1:]) == [10 + i % 5000 for i in range(4223, 4223 + TOKENS - 1)]


def test_a_short_context_takes_many_passages(config: ModelConfig) -> None:
    passages, _ = plan(replace(config, max_position=500))
    assert max(lengths(passages)) == 500
    assert sum(lengths(passages)) >= TOKENS


def test_text_under_the_short_factors_fits_below_the_switch(config: ModelConfig) -> None:
    passages, _ = plan(with_longrope(config, 40, 256))
    assert lengths(passages)[0] == 40 + 128
    assert set(lengths(passages)[1:]) <= {*range(2, 41)}
    assert sum(lengths(passages)[1:]) >= TOKENS


def test_passages_beyond_a_cpus_patience_are_named_not_tried(config: ModelConfig) -> None:
    passages, skipped = plan(replace(config, sliding_window=LONGEST, max_position=131072))
    assert lengths(passages) == [TOKENS]
    assert skipped == [f"beyond the sliding window of {LONGEST}: not tried, beyond {LONGEST} tokens"]


def test_a_window_or_switch_as_long_as_the_context_is_none(config: ModelConfig) -> None:
    passages, skipped = plan(replace(with_longrope(config, 4096, 4096), sliding_window=4096))
    assert (lengths(passages), skipped) == ([TOKENS], [])


def test_the_text_is_long_enough_for_every_passage() -> None:
    # The tokenizers of these models make 3.5 to 4.4 characters of such text into a token.
    assert len(corpus.text()) / 4.4 > 3500
    assert len(corpus.snippets()) >= 30
    assert all(chat[-1]["role"] == "user" for chat in corpus.chats())
    assert {message["role"] for chat in corpus.chats() for message in chat} == {"system", "user", "assistant"}


def test_nothing_is_calibrated_on_the_test_text() -> None:
    folder = Path(corpus.__file__).parents[2] / "quantize" / "data"
    calibration = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*") if path.is_file())
    lines = [line.strip() for line in corpus.text().splitlines()]
    # Shorter ones are anybody's: "from collections.abc import Iterator".
    sentences = [part for line in lines for part in re.split(r"(?<=[.!?]) ", line) if len(part) > 40]
    assert len(sentences) > 150
    assert [sentence for sentence in sentences if sentence in calibration] == []


def test_a_provider_without_windows_gets_the_beginnings() -> None:
    long, short = Passage(np.arange(30), 20, "long"), Passage(np.arange(5), 5, "short")
    (first, whole), (second, same) = within_window([long, short], 8, None)
    assert list(first.ids) == list(range(8)) and first.first == 8
    assert whole is long and same is short and list(second.ids) == list(short.ids)


def test_a_beginning_that_longrope_would_give_other_factors_is_left_out() -> None:
    long, short = Passage(np.arange(30), 20, "long"), Passage(np.arange(10), 5, "short")
    assert [whole for _, whole in within_window([long, short], 8, 16)] == [short]
    assert [whole for _, whole in within_window([long, short], 20, 16)] == [long, short]


@pytest.mark.parametrize(
    ("context", "switch", "kept"), [(100, None, 5), (12, None, 4), (100, 11, 3), (9, 11, 1), (100, 4, 1)]
)
def test_a_prompt_and_its_answer_stay_within_the_context_and_the_short_factors(
    context: int, switch: int | None, kept: int
) -> None:
    cut = cut_prompt([1, 2, 3, 4, 5], Lengths(context, None, switch), steps=8)
    assert cut.tolist() == [1, 2, 3, 4, 5][-kept:] and cut.dtype == np.int64
