"""Contenders in turn, each in a process of its own that stays loaded, and ratios of what they took in one round.

A machine is faster in one second than in another. What ran in the same round had the same machine, about; so ratios are
taken within a round, and their spread over the rounds says what they are worth.
"""

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any, Literal, NamedTuple

import numpy as np

from ...configs import UsageError
from ...configs.progress import Counter, Progress, silent
from ..machine import peak_memory
from ..tables import Table
from .contenders import Contender, Entry, open_contender

_WARM_STEPS = 4
# Worker threads of a contender that is done may spin for a while before they sleep.
_PAUSE_SECONDS = 0.1


Kind = Literal["prefill", "decode"]


class Loaded(NamedTuple):
    """A contender that is ready."""

    name: str
    engine: str
    load_seconds: float
    cold_first_token_seconds: float


class Turn(NamedTuple):
    """What one contender took in one round."""

    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Result:
    """What one contender gave of one kind of work."""

    name: str
    engine: str
    kind: Kind
    tokens: int
    depth: int
    """Tokens in the cache before."""
    tokens_per_second: float
    """The median over the rounds."""
    least: float
    most: float
    ratio: float | None
    """How many times as fast the first contender was: the median of the rounds' ratios; None for itself."""
    ratio_least: float | None
    ratio_most: float | None
    load_seconds: float
    cold_first_token_seconds: float
    """Of the first prompt after loading."""
    peak_memory_bytes: int


def contest(
    entries: Sequence[Entry], *, prompt_tokens: int, decoded_tokens: int, rounds: int, progress: Progress = silent
) -> list[Result]:
    """Time contenders in turn.

    Args:
        entries: the first is what the others are compared with.
        prompt_tokens: length of the prompt.
        decoded_tokens: tokens run one by one after it.
        rounds: how often each has its turn; each round begins with another.
        progress: called between what is timed.

    Raises:
        Phi3OnnxError: one cannot be loaded or run.

    """
    if len(entries) < 2:
        raise UsageError("a comparison needs two models or more")
    with ExitStack() as stack:
        players = [stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn"))) for _ in entries]
        loaded: list[Loaded] = []
        for player, entry in zip(players, entries, strict=True):
            progress(f"loading {entry.path}")
            loaded.append(player.submit(_load, entry, prompt_tokens, decoded_tokens).result())
        counter = Counter(progress, "measuring", rounds * len(players), "turns")
        turns: list[list[Turn]] = [[] for _ in entries]
        for number in range(rounds):
            for place in range(len(players)):
                index = (number + place) % len(players)
                turn: Future[Turn] = players[index].submit(_play, prompt_tokens, decoded_tokens)
                turns[index].append(turn.result())
                counter.add(1)
                time.sleep(_PAUSE_SECONDS)
        memory = [player.submit(peak_memory).result() for player in players]
    return results_of(loaded, turns, memory, prompt_tokens=prompt_tokens, decoded_tokens=decoded_tokens)


def results_of(
    loaded: Sequence[Loaded],
    turns: Sequence[Sequence[Turn]],
    memory: Sequence[int],
    *,
    prompt_tokens: int,
    decoded_tokens: int,
) -> list[Result]:
    """Return what the turns of all rounds come to.

    Args:
        loaded: the contenders.
        turns: of each contender, a turn for each round.
        memory: of each contender, its peak in bytes.
        prompt_tokens: as for `contest`, like the next one.
        decoded_tokens: tokens of each turn after the prompt.

    """
    results = list[Result]()
    for who, own, peak in zip(loaded, turns, memory, strict=True):
        work: list[tuple[Kind, int, int]] = [("prefill", prompt_tokens, 0), ("decode", decoded_tokens, prompt_tokens)]
        for kind, tokens, depth in work:
            seconds, first = ([_seconds(turn, kind) for turn in of] for of in (own, turns[0]))
            ratios = [] if own is turns[0] else [theirs / ours for theirs, ours in zip(seconds, first, strict=True)]
            results.append(
                Result(
                    who.name,
                    who.engine,
                    kind,
                    tokens,
                    depth,
                    *_spread([tokens / value for value in seconds], 2),
                    *(_spread(ratios, 3) if ratios else (None, None, None)),
                    load_seconds=round(who.load_seconds, 3),
                    cold_first_token_seconds=round(who.cold_first_token_seconds, 4),
                    peak_memory_bytes=peak,
                )
            )
    return results


def contest_table(results: Sequence[Result]) -> Table:
    """Return the results, a row each."""
    rows = [list(asdict(result).values()) for result in results]
    notes = [
        f"ratio: how many times as fast {results[0].name} was in the same round; in turn, each in its own process",
        f"warm-up: one prompt of the same length, and {_WARM_STEPS} tokens after it",
    ]
    return Table(list(asdict(results[0])), rows, notes, [asdict(result) for result in results])


def _seconds(turn: Turn, kind: Kind) -> float:
    return turn.prefill_seconds if kind == "prefill" else turn.decode_seconds


def _spread(values: Sequence[float], digits: int) -> tuple[float, float, float]:
    middle, least, most = (round(of(values), digits) for of in (statistics.median, min, max))
    return middle, least, most


# What follows runs in a contender's own process, which keeps it here.
_here: dict[str, Contender] = {}


def _load(entry: Entry, prompt_tokens: int, decoded_tokens: int) -> Loaded:
    started = time.perf_counter()
    contender = open_contender(entry, prompt_tokens + decoded_tokens + _WARM_STEPS)
    seconds = time.perf_counter() - started
    _here["contender"] = contender
    cold = _play(prompt_tokens, _WARM_STEPS)
    return Loaded(contender.name, contender.engine, seconds, cold.prefill_seconds)


def _play(prompt_tokens: int, decoded_tokens: int) -> Turn:
    contender = _here["contender"]
    random: Any = np.random.default_rng(0)
    ids: list[int] = random.integers(0, contender.vocab_size, prompt_tokens + decoded_tokens).tolist()
    started = time.perf_counter()
    contender.prefill(ids[:prompt_tokens])
    middle = time.perf_counter()
    for token in ids[prompt_tokens:]:
        contender.step(token)
    return Turn(middle - started, time.perf_counter() - middle)
