"""Log probabilities of continuations, as benchmarks with several choices ask for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...configs import UsageError
from ...runtime import Model
from ...runtime.decoding.kvcache import common_length
from ...runtime.decoding.sampling import log_softmax

_KEPT_ROWS = 64
"""Logits kept after each context, for other continuations that begin alike; 8 MB at Phi-3's vocabulary."""
_SPARE_TOKENS = 256
"""Room reserved for longer texts to come, which would lose what is cached otherwise."""


@dataclass(frozen=True)
class Continuation:
    """How likely a model finds a continuation."""

    log_probability: float
    """Of all its tokens together, in nats."""
    greedy: bool
    """Whether each of its tokens is the most likely one where it stands."""


class ContinuationScorer:
    """Scores continuations of contexts. What a text shares with the one before is in the KV cache already.

    Sort the texts by their tokens to share the most: all choices of a question then run on one cache, and so do the
    examples that many questions begin with.
    """

    def __init__(self, model: Model) -> None:
        """Use a loaded model; `close` gives the cache's memory back."""
        self._cache = model.new_cache()
        self._context_length = model.context_length
        self._rows: dict[int, np.ndarray] = {}  # position -> logits after the cached token there
        self._last_row_only = False

    def score(self, context: Sequence[int], continuation: Sequence[int]) -> Continuation:
        """Return how likely a continuation is.

        Args:
            context: token ids, one or more.
            continuation: the token ids after them.

        Raises:
            UsageError: the context is empty, or both do not fit into the model's context.
            EngineError: the engine failed.

        """
        if not context:
            raise UsageError("a continuation needs a context of one token or more")
        tokens, first = [*context, *continuation], len(context) - 1
        total, greedy = 0.0, True
        for position, row in enumerate(self._logits(tokens[:-1], first), start=first):
            following = tokens[position + 1]
            total += float(log_softmax(row)[following])
            greedy = greedy and int(row.argmax()) == following
            if position < first + _KEPT_ROWS and position not in self._rows:
                self._rows[position] = row.copy()  # a row of a run keeps all of its run's rows in memory
        return Continuation(total, greedy)

    def close(self) -> None:
        """Give the KV cache's memory back."""
        self._cache.close()
        self._rows = {}

    def _logits(self, tokens: list[int], first: int) -> Iterator[np.ndarray]:
        """Yield the logits after each token from position `first` on, float32 [vocabulary]."""
        if first >= len(tokens):
            return
        self._reserve(len(tokens))
        position = first
        for position in range(first, self._valid(tokens)):
            if position not in self._rows:
                break
            yield self._rows[position]
        else:
            position = max(first, self._valid(tokens))
        if position < self._cache.shared(tokens):  # cached, but its logits were not kept: it has to run again
            yield from self._run(tokens[: position + 1], position)
            position += 1
        if position < len(tokens):
            yield from self._run(tokens, position)

    def _reserve(self, count: int) -> None:
        if count > self._cache.capacity:
            self._rows = {}
        self._cache.reserve(count, min(_SPARE_TOKENS, self._context_length - count))

    def _valid(self, tokens: list[int]) -> int:
        """Return how many leading tokens the cache holds, if it can be continued at all."""
        common = common_length(self._cache.tokens, tokens)
        # Less is shared where the engine cannot continue, or where LongRoPE needs its other factors. One token cannot
        # tell.
        return common if len(tokens) > 1 and self._cache.shared(tokens) == min(common, len(tokens) - 1) else 0

    def _run(self, tokens: list[int], first: int) -> Iterator[np.ndarray]:
        """Make the cache hold `tokens`, and yield the logits after those from position `first` on."""
        if self._last_row_only:
            yield from self._one_by_one(tokens, first)
            return
        self._forget_from(self._cache.shared(tokens))
        runs = self._cache.prefill(tokens)
        start = next(runs)
        for stop in runs:
            rows = self._cache.run_logits()
            if len(rows) < stop - max(start, first):
                self._last_row_only = True
                yield from self._one_by_one(tokens, max(start, first))
                return
            yield from rows[len(rows) - max(0, stop - max(start, first)) :]
            start = stop

    def _one_by_one(self, tokens: list[int], first: int) -> Iterator[np.ndarray]:
        # The graph has logits for its last token only, so each token has to be the last one once.
        self._forget_from(self._cache.shared(tokens[: first + 1]))
        for _ in self._cache.prefill(tokens[: first + 1]):
            pass
        yield self._cache.logits()
        for token in tokens[first + 1 :]:
            self._cache.append(token)
            yield self._cache.logits()

    def _forget_from(self, length: int) -> None:
        self._rows = {position: row for position, row in self._rows.items() if position < length}
