"""The generation loop: prefill in chunks, draw, decode, stop. It knows nothing of providers, files or terminals."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np

from ...configs import EngineError, UsageError
from ...configs.options import OPTIONS, AnswerOptions
from ..text.stops import StopFilter
from ..text.tokenizer import StreamDecoder
from .engine import Guidance, GuidedDraws
from .guide import Guide
from .response import Chunk, FinishReason, Response
from .sampling import Sampler, Sampling, TokenLogprobs, token_logprobs

DEFAULT_MAX_TOKENS = 1024
"""Tokens of an answer at most, where nothing else is asked for; fewer where the context ends before."""
_LOOK_EVERY = 16


class GenerateOptions(AnswerOptions, total=False):
    """The keywords of `Model.generate` and its like; None stands for the default."""

    logprobs: int | None
    """How many of the most likely tokens to report with each token and its own log probability."""
    guidance: Guidance | None
    """A form that the answer must have."""


@dataclass(frozen=True)
class Options:
    """What one generation was asked for."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    """Tokens of the answer at most; None is `DEFAULT_MAX_TOKENS`, or what the context has room for if that is less."""
    min_tokens: int = 0
    """Tokens of the answer at least; where guidance leaves nothing but the end, it ends before."""
    ignore_eos: bool = False
    """Whether an end token is never drawn, but where guidance leaves nothing else."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """How many of the most likely tokens to report with each token; None reports nothing."""
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            OPTIONS["max_tokens"].check(self.max_tokens)
        OPTIONS["min_tokens"].check(self.min_tokens)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise UsageError(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}")
        if self.logprobs is not None and self.logprobs < 0:
            raise UsageError(f"logprobs must be 0 or more, got {self.logprobs}")
        StopFilter(self.stop)  # refuses an empty one

    @property
    def puts_off_end(self) -> bool:
        """Whether there are places where no end token may be drawn."""
        return self.ignore_eos or self.min_tokens > 0

    @property
    def searchable(self) -> bool:
        """Whether ONNX Runtime GenAI's own search can do it under guidance."""
        return not self.puts_off_end and all(OPTIONS[name].guided for name in self.sampling.changed)

    @property
    def guided(self) -> GuidedDraws | None:
        """What the engine has to know to draw under guidance."""
        return GuidedDraws(self.guidance, self.sampling, self.seed) if self.guidance else None


def room_for(prompt: int, options: Options, context: int) -> int:
    """Return how many tokens an answer may have.

    Args:
        prompt: its tokens.
        options: of the answer.
        context: tokens that the model can have in all.

    Raises:
        UsageError: prompt and answer do not fit into the model's context.

    """
    wanted = options.max_tokens or max(1, options.min_tokens)
    if prompt + wanted > context:
        raise UsageError(f"prompt {prompt} tokens + {wanted} > context {context}; shorten the prompt or ask for fewer")
    return options.max_tokens or min(max(DEFAULT_MAX_TOKENS, options.min_tokens), context - prompt)


class TextCache(Protocol):
    """What of a `KvCache` one answer uses."""

    @property
    def chooses(self) -> bool:
        """Whether `choose_token` gives what the logits would."""
        ...

    @property
    def waiting(self) -> bool:
        """Whether tokens wait to be run together with other texts'."""
        ...

    @property
    def drafted(self) -> int:
        """Tokens that were run ahead so far."""
        ...

    @property
    def accepted(self) -> int:
        """How many of them came true."""
        ...

    def shared(self, prompt: Sequence[int]) -> int:
        """Return how many leading tokens of the prompt need no run."""
        ...

    def prefill(self, prompt: Sequence[int]) -> Iterator[int]:
        """Make the cache hold exactly the prompt; yields the tokens it holds before and after each part."""
        ...

    def append(self, token: int) -> None:
        """Add one token."""
        ...

    def logits(self) -> np.ndarray:
        """Return the logits after the last token, float32 [vocabulary]."""
        ...

    def choose_token(self) -> int:
        """Let the engine choose the next token and keep it."""
        ...


class Generation:
    """One answer in the making: iterate over it once."""

    def __init__(
        self,
        cache: TextCache,
        prompt: Sequence[int],
        options: Options,
        *,
        room: int,
        end_tokens: frozenset[int],
        decoder: StreamDecoder,
        guide: Guide | None = None,
        cancel: threading.Event | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> None:
        """Prepare it; nothing runs before the iteration begins.

        Args:
            cache: with room reserved for the prompt and `room` tokens.
            prompt: token ids.
            options: how to draw, and when to stop.
            room: tokens of the answer at most.
            end_tokens: those that end an answer.
            decoder: turns the answer's tokens into text.
            guide: masks the logits; without one, the engine has to follow the options' guidance by itself.
            cancel: ends the answer when it is set.
            on_prefill: called with the prompt's tokens run so far and in all.

        """
        self._cache = cache
        self._prompt = prompt
        self._options = options
        self._room = room
        self._end_tokens = end_tokens
        self._ends = sorted(end_tokens)
        self._decoder = decoder
        self._cancel = cancel or threading.Event()
        self._on_prefill = on_prefill
        self._sampler = Sampler(options.sampling, options.seed)
        self._stops = StopFilter(options.stop)
        # What is to be reported or changed has to be read, and then it can be picked here as well.
        plain = options.sampling.greedy and not options.sampling.changes_logits and options.logprobs is None
        plain = plain and not options.puts_off_end
        self._guide = guide
        self._engine_chooses = guide is None and (bool(options.guidance) or (plain and cache.chooses))
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._pieces: list[str] = []

    def __iter__(self) -> Iterator[Chunk]:
        """Yield a chunk for each token, and one with the response.

        Raises:
            EngineError: the engine failed.

        """
        return (chunk for chunk in self.steps() if chunk)

    def steps(self) -> Iterator[Chunk | None]:
        """Yield what the iteration does, None after each part of the prompt, and None where a token waits to be run.

        Whoever makes several answers at a time takes turns there, and may give this one up there.
        """
        started = perf_counter()
        cached = self._cache.shared(self._prompt)
        first = last = 0.0
        reason: FinishReason = "cancelled"
        for done in self._cache.prefill(self._prompt):
            if self._on_prefill:
                self._on_prefill(done, len(self._prompt))
            if self._cancel.is_set():
                break
            yield None
        else:
            reason = "length"
            while len(self._ids) < self._room:
                if self._cancel.is_set():
                    reason = "cancelled"
                    break
                # The token drawn last is run only now that another is wanted; the engine runs those that it chose.
                if self._ids and not self._engine_chooses:
                    self._cache.append(self._ids[-1])
                    if self._cache.waiting:
                        yield None
                token = self._next_token()
                last = perf_counter()
                first = first or last
                if token in self._end_tokens:
                    reason = "stop"
                    break
                text = self._decoder.push(token)
                early = len(self._ids) <= self._options.min_tokens
                yield self._chunk(text if early else self._stops.push(text), token)
                if self._stops.stopped or (self._guide and self._guide.ended):
                    reason = "stop"
                    break
        rest = self._stops.push(self._decoder.flush()) + self._stops.flush()
        self._pieces.append(rest)
        response = Response(
            text="".join(self._pieces),
            token_ids=tuple(self._ids),
            prompt_tokens=len(self._prompt),
            cached_tokens=cached,
            prefill_seconds=(first or perf_counter()) - started,
            decode_seconds=last - first,
            finish_reason="stop" if self._stops.stopped else reason,
            logprobs=tuple(self._logprobs) if self._options.logprobs is not None else None,
            drafted_tokens=self._cache.drafted,
            accepted_tokens=self._cache.accepted,
            stop=self._stops.found,
        )
        yield Chunk(rest, response=response)

    def _next_token(self) -> int:
        if self._engine_chooses:
            token, logits = self._chosen_token()
        else:
            logits = self._cache.logits()
            masked = self._without_end(self._guide.mask(logits) if self._guide else logits)
            token = self._sampler.pick(masked, self._prompt, self._ids)
            self._check(logits, token)
            if self._guide and token not in self._end_tokens:
                self._guide.take(token)
        self._ids.append(token)
        if self._options.logprobs is not None and logits is not None:
            self._logprobs.append(token_logprobs(logits, token, self._options.logprobs))
        return token

    def _without_end(self, logits: np.ndarray) -> np.ndarray:
        """Return logits with minus infinity for end tokens, where none may come yet and another token can."""
        if not (self._options.ignore_eos or len(self._ids) < self._options.min_tokens):
            return logits
        barred = logits.copy()
        barred[self._ends] = -np.inf
        return barred if np.isfinite(barred.max()) else logits

    def _chosen_token(self) -> tuple[int, np.ndarray | None]:
        # Reading logits takes 0.05 ms more (a vocabulary of 49152), 1 % of a small model's token. A cache that holds
        # one NaN gives nothing else from then on, so a look now and then is enough.
        looked_at = self._options.logprobs is not None or len(self._ids) % _LOOK_EVERY == 0
        logits = self._cache.logits() if looked_at else None
        token = self._cache.choose_token()
        if logits is not None:
            self._check(logits, token)
        return token, logits

    def _check(self, logits: np.ndarray, token: int) -> None:
        if not math.isfinite(logits[token]):
            length = len(self._prompt) + len(self._ids)
            raise EngineError(f"the model returned a logit of {logits[token]} after {length} tokens")

    def _chunk(self, text: str, token: int) -> Chunk:
        self._pieces.append(text)
        return Chunk(text, token, self._logprobs[-1] if self._logprobs else None)
