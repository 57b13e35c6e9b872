"""The text that packages are measured on (`evaluate/data`), and which stretches of it a model is run over."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ...configs import ModelConfig

Chat = list[dict[str, str]]

_DATA = Path(__file__).parents[1] / "data"

TOKENS = 2300
"""Tokens compared at least; the window of Phi-3-mini-4k (2,047) lies well within them."""
LONGEST = 8192
"""Windows and LongRoPE switches beyond this are not tried: their passages would take hours on a CPU."""
_BEYOND_WINDOW = 256
_BEYOND_SWITCH = 128


def text() -> str:
    """Return the project's own test text: 18,000 characters of prose, code, chat and several languages."""
    return _read("text.txt")


@cache
def chats() -> tuple[Chat, ...]:
    """Return conversations as lists of `{"role": ..., "content": ...}`; the last message is always the user's."""
    return tuple(json.loads(_read("chats.json")))


@cache
def snippets() -> tuple[str, ...]:
    """Return short texts that tokenizers disagree about."""
    return tuple(json.loads(_read("snippets.json")))


def _read(name: str) -> str:
    return (_DATA / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Passage:
    """One sequence that reference and package are both run over."""

    ids: np.ndarray
    """int64 [tokens]"""
    first: int
    """Tokens of the package's first run, which has no cache; what follows goes through the cache."""
    purpose: str


def plan_passages(config: ModelConfig, ids: np.ndarray, prefix: np.ndarray) -> tuple[list[Passage], list[str]]:
    """Choose the passages that show whether a package is its model.

    There are `TOKENS` positions at least. One passage goes beyond the sliding window, in its first run and again
    through the cache; one goes beyond the point at which LongRoPE changes its factors.

    Args:
        config: the model.
        ids: the text's token ids, without any that the tokenizer adds.
        prefix: what the tokenizer puts before every text (a beginning-of-text token, or nothing).

    Returns:
        The passages, and a line for each thing that could not be tried.

    """
    switch = config.longrope.original_max_position if config.longrope else None
    stretches = _Stretches(ids, prefix)
    passages: list[Passage] = []
    skipped: list[str] = []
    for length, first, purpose in _special_lengths(config, switch):
        if length > LONGEST:
            skipped.append(f"{purpose}: not tried, beyond {LONGEST} tokens")
        else:
            passages.append(Passage(stretches.take(length), first, purpose))
    context = min(config.max_position, switch or config.max_position)
    # A passage beyond the switch says nothing about the short factors, so it does not count here.
    missing = TOKENS - sum(len(passage.ids) for passage in passages if len(passage.ids) <= context)
    while missing > 0:
        length = min(max(missing, 2), context)
        passages.append(Passage(stretches.take(length), 256, "text"))
        missing -= length
    return passages, skipped


def _special_lengths(config: ModelConfig, switch: int | None) -> Iterator[tuple[int, int, str]]:
    if (window := config.sliding_window) is not None and window < config.max_position:
        length = min(window + _BEYOND_WINDOW, config.max_position)
        yield length, (window + length) // 2, f"beyond the sliding window of {window}"
    if switch is not None and switch < config.max_position:
        yield min(switch + _BEYOND_SWITCH, config.max_position), switch + 1, f"beyond {switch} tokens (LongRoPE)"


class _Stretches:
    """Hands out one stretch of the text after another, from its start again after its end."""

    def __init__(self, ids: np.ndarray, prefix: np.ndarray) -> None:
        self._ids, self._prefix, self._position = ids, prefix, 0

    def take(self, length: int) -> np.ndarray:
        count = length - len(self._prefix)
        found = self._ids.take(range(self._position, self._position + count), mode="wrap")
        self._position += count
        return np.concatenate([self._prefix, found]).astype(np.int64)
