"""The text that packages are measured on (`evaluate/data`), and which stretches of it a model is run over."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Lengths:
    """What of a model says how long its passages have to be, in tokens."""

    context: int
    window: int | None
    """The sliding window of its attention; None without one."""
    switch: int | None
    """The most tokens for which LongRoPE takes its short factors; None without it."""

    @classmethod
    def of(cls, config: ModelConfig) -> "Lengths":
        """Return those of a model."""
        rope = config.longrope
        return cls(config.max_position, config.sliding_window, rope.original_max_position if rope else None)

    @property
    def short(self) -> int:
        """The most tokens of a text within the context and LongRoPE's short factors."""
        return min(self.context, self.switch or self.context)


def plan_passages(lengths: Lengths, ids: np.ndarray, prefix: np.ndarray) -> tuple[list[Passage], list[str]]:
    """Choose the passages that show whether a package is its model.

    There are `TOKENS` positions at least. One passage goes beyond the sliding window, in its first run and again
    through the cache; one goes beyond the point at which LongRoPE changes its factors.

    Args:
        lengths: the model's.
        ids: the text's token ids, without any that the tokenizer adds.
        prefix: what the tokenizer puts before every text (a beginning-of-text token, or nothing).

    Returns:
        The passages, and a line for each thing that could not be tried.

    """
    stretches = _Stretches(ids, prefix)
    passages: list[Passage] = []
    skipped: list[str] = []
    for length, first, purpose in _special_lengths(lengths):
        if length > LONGEST:
            skipped.append(f"{purpose}: not tried, beyond {LONGEST} tokens")
        else:
            passages.append(Passage(stretches.take(length), first, purpose))
    context = lengths.short
    # A passage beyond the switch says nothing about the short factors, so it does not count here.
    missing = TOKENS - sum(len(passage.ids) for passage in passages if len(passage.ids) <= context)
    while missing > 0:
        length = min(max(missing, 2), context)
        passages.append(Passage(stretches.take(length), 256, "text"))
        missing -= length
    return passages, skipped


def cut_prompt(ids: Sequence[int], lengths: Lengths, steps: int) -> np.ndarray:
    """Return the end of a prompt, int64 [tokens], that leaves room for an answer of so many tokens.

    An answer that outgrew LongRoPE's short factors could not be judged by one pass, which has one set for all of it.
    """
    return np.array(ids[-max(1, lengths.short - steps) :], dtype=np.int64)


def within_window(passages: Sequence[Passage], window: int, switch: int | None) -> list[tuple[Passage, Passage]]:
    """Return each passage as far as a sliding window goes, for a provider that computes none, and beside it the whole.

    Passages whose beginning LongRoPE would give other factors than the whole are left out.
    """
    kept = [passage for passage in passages if not switch or window > switch or len(passage.ids) <= switch]
    return [(replace(passage, ids=passage.ids[:window], first=min(passage.first, window)), passage) for passage in kept]


def _special_lengths(lengths: Lengths) -> Iterator[tuple[int, int, str]]:
    switch = lengths.switch
    if (window := lengths.window) is not None and window < lengths.context:
        length = min(window + _BEYOND_WINDOW, lengths.context)
        yield length, (window + length) // 2, f"beyond the sliding window of {window}"
    if switch is not None and switch < lengths.context:
        yield min(switch + _BEYOND_SWITCH, lengths.context), switch + 1, f"beyond {switch} tokens (LongRoPE)"


class _Stretches:
    """Hands out one stretch of the text after another, from its start again after its end."""

    def __init__(self, ids: np.ndarray, prefix: np.ndarray) -> None:
        self._ids, self._prefix, self._position = ids, prefix, 0

    def take(self, length: int) -> np.ndarray:
        count = length - len(self._prefix)
        found = self._ids.take(range(self._position, self._position + count), mode="wrap")
        self._position += count
        return np.concatenate([self._prefix, found]).astype(np.int64)
