"""The KV cache of one text: what of a new prompt is in it already, the rest in chunks, and LongRoPE's two sets of keys.

LongRoPE (arXiv:2402.13753) has two sets of rotary factors, and a graph takes the one for the total length at each run.
Keys cached under one set are wrong under the other, so a text that grows past the switch is run again from its start,
its first run longer than the switch; transformers does the same when it generates.
"""

from collections.abc import Callable, Generator, Sequence

import numpy as np

from ...configs import EngineError, UsageError
from ...configs.sizes import size
from .ahead import Ahead, RunsAhead
from .engine import Engine, GuidedDraws, TokenSequence
from .lookup import LookupDrafter
from .speculation import Drafter

_NO_ROWS = np.empty((0, 0), np.float32)


class KvCache:
    """One text's cache in an engine. Not for use by two threads at a time."""

    def __init__(
        self,
        engine: Engine,
        *,
        context_length: int,
        bytes_per_token: int = 0,
        switch: int | None = None,
        free_memory: Callable[[], int | None] | None = None,
        on_reserve: Callable[[int, int], None] | None = None,
        runs_ahead: RunsAhead | None = None,
        drafter: Callable[[], Drafter] = LookupDrafter,
    ) -> None:
        """Make an empty cache, which reserves nothing yet.

        Args:
            engine: the loaded model.
            context_length: tokens that the model can hold.
            bytes_per_token: bytes of KV cache for one token.
            switch: the most tokens for which LongRoPE's short factors hold; None for a model with one set.
            free_memory: returns the bytes that can be taken, or None where that is not known, and not checked.
            on_reserve: called with tokens and bytes before they are reserved.
            runs_ahead: runs drafts on the engine's sequences; None runs nothing ahead.
            drafter: returns what writes the drafts of an answer.

        """
        self._engine = engine
        self._context_length = context_length
        self._bytes_per_token = bytes_per_token
        self._switch = switch
        self._free_memory = free_memory
        self._on_reserve = on_reserve
        self._sequence: TokenSequence | None = None
        self._guided: GuidedDraws | None = None
        self._tokens: list[int] = []
        self._chosen: int | None = None  # in the sequence, and not run before the next is chosen
        self._long = False
        self._runs_ahead = runs_ahead
        self._drafter = drafter
        self._ahead: Ahead | None = None  # of the answer under way
        self._rows = _NO_ROWS  # logits of the last token, and of those of a draft after it
        self._extra = 0  # tokens of a draft that the sequence holds beyond this text
        self._needed = 0

    @property
    def drafted(self) -> int:
        """Tokens of this answer that were run ahead so far."""
        return self._ahead.drafted if self._ahead else 0

    @property
    def accepted(self) -> int:
        """How many of them came true."""
        return self._ahead.accepted if self._ahead else 0

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens whose keys and values are cached."""
        return tuple(self._tokens)

    @property
    def capacity(self) -> int:
        """Tokens that memory is reserved for."""
        return self._sequence.capacity if self._sequence else 0

    @property
    def waiting(self) -> bool:
        """Whether the last token appended waits to be run together with other texts', until logits are asked for."""
        return self._sequence is not None and self._sequence.waiting

    @property
    def chooses(self) -> bool:
        """Whether `choose_token` gives what the logits would without guidance: not across LongRoPE's switch."""
        return self._engine.chooses and self._switch is None

    @property
    def guided(self) -> GuidedDraws | None:
        """The guidance under which the cached tokens can be continued; None for free text."""
        return self._guided

    def reserve(self, needed: int, spare: int = 0, guided: GuidedDraws | None = None) -> None:
        """Make room for `needed` tokens; where that takes a new reservation, for `spare` more, and the cache is empty.

        Raises:
            UsageError: `needed` is past the model's context, or takes more memory than is free.
            EngineError: the engine could not reserve it.

        """
        if needed > self._context_length:
            raise UsageError(f"{needed} tokens do not fit into the model's context of {self._context_length}")
        self._needed = needed
        # A rewind takes guidance back to its beginning, but not the engine's random numbers to their seed.
        seeded = guided is not None and guided.seed is not None and not guided.sampling.greedy
        if self._sequence and needed <= self._sequence.capacity and guided == self._guided and not seeded:
            return
        self.close()
        capacity = self._affordable(needed, spare)
        if self._on_reserve:
            self._on_reserve(capacity, capacity * self._bytes_per_token)
        self._sequence, self._guided = self._engine.open(capacity, guided), guided

    def _affordable(self, needed: int, spare: int) -> int:
        most = min(needed + spare, self._context_length)
        if not self._bytes_per_token or self._free_memory is None:
            return most
        free = self._free_memory()
        if free is None:
            return most
        check_memory(needed, self._bytes_per_token, free)
        # What is to spare takes no more than half of what is free.
        return max(needed, min(most, free // 2 // self._bytes_per_token))

    def shared(self, prompt: Sequence[int]) -> int:
        """Return how many leading tokens of `prompt` need no run; the last one always does, for its logits."""
        if self._sequence is None or not self._engine.continuous:
            return 0
        if self._switch is not None and self._long != (len(prompt) > self._switch):
            return 0
        # Guidance goes back to its beginning with a rewind, so there has to be one.
        most = len(prompt) - 1 if self._guided is None else min(len(prompt), len(self._tokens)) - 1
        return max(0, min(common_length(self._tokens, prompt), most))

    def prefill(self, prompt: Sequence[int]) -> Generator[int, None, None]:
        """Make the cache hold exactly `prompt`, in chunks; yields the tokens it holds before and after each.

        The caller may stop between two of them: what is cached by then is right, and counts the next time.

        Raises:
            UsageError: the prompt is empty.
            EngineError: the engine failed; the cache is empty then.

        """
        if not prompt:
            raise UsageError("the prompt holds no tokens")
        sequence, start = self._opened(), self.shared(prompt)
        if start < len(self._tokens) or self._chosen is not None:
            self._rewind(start)
        self._drop_draft()
        self._ahead = Ahead(self._drafter()) if self._runs_ahead else None
        yield start
        beyond = self._switch is not None and len(prompt) > self._switch
        while start < len(prompt):
            stop = start + (self._engine.prefill_chunk if self._engine.continuous else len(prompt))
            if beyond and self._switch is not None:
                stop = max(stop, self._switch + 1)  # a run that ends before the switch would use the short factors
            self._run(sequence, prompt[start:stop])
            start = len(self._tokens)
            yield start

    def append(self, token: int) -> None:
        """Run the model on one more token, and where it crosses LongRoPE's switch, on all of them again.

        Raises:
            EngineError: the engine failed; the cache is empty then.

        """
        sequence = self._opened()
        if self._ahead and self._ahead.takes(token, self._tokens):
            self._rows, self._extra = self._rows[1:], self._extra - 1
            self._note([token])
            return
        self._drop_draft()
        if self._switch is not None and len(self._tokens) == self._switch:
            everything = [*self._tokens, token]
            self._rewind(0)
            self._run(sequence, everything)
        elif self._runs_ahead and self._ahead:
            self._run_ahead(sequence, token, self._runs_ahead, self._ahead)
        else:
            self._run(sequence, [token])

    def logits(self) -> np.ndarray:
        """Return the logits after the last token, float32 [vocabulary].

        Raises:
            EngineError: the engine failed; the cache is empty then.

        """
        if len(self._rows):
            return self._rows[0]
        try:
            return self._opened().logits()
        except EngineError:
            self.close()
            raise

    def run_logits(self) -> np.ndarray:
        """Return the logits of the last run, float32 [rows, vocabulary]; see `TokenSequence.run_logits`."""
        return self._opened().run_logits()

    def choose_token(self) -> int:
        """Let the engine choose the next token and keep it: under the guidance that `reserve` was given, or greedily.

        Raises:
            EngineError: the engine failed; the cache is empty then.

        """
        sequence = self._opened()
        try:
            token = sequence.choose_token()
        except BaseException:
            self.close()
            raise
        if self._chosen is not None:
            self._note([self._chosen])
        self._chosen = token
        return token

    def close(self) -> None:
        """Give the memory back; the cache is empty then, and can be used again."""
        if self._sequence:
            self._sequence.close()
        self._sequence, self._guided, self._tokens, self._chosen, self._long = None, None, [], None, False
        self._rows, self._extra = _NO_ROWS, 0

    def _opened(self) -> TokenSequence:
        if self._sequence is None:
            raise RuntimeError("reserve() has to come before the cache is used")
        return self._sequence

    def _run_ahead(self, sequence: TokenSequence, token: int, runs_ahead: RunsAhead, ahead: Ahead) -> None:
        """Run the model on one more token, and on a draft after it where that is worth its time."""
        left = self._needed - len(self._tokens) - 2  # the last token of an answer is never run
        if self._switch is not None and not self._long:
            left = min(left, self._switch - len(self._tokens) - 1)
        draft = runs_ahead.chosen(ahead.draft(min(runs_ahead.most, left)))
        try:
            self._rows = runs_ahead.run(sequence, [token, *draft.tokens])
        except BaseException:  # as in `_run`
            self.close()
            raise
        self._extra = len(draft.tokens)
        ahead.ran(draft.tokens)
        self._note([token])

    def _drop_draft(self) -> None:
        """Take out of the sequence what was run ahead and did not come true."""
        if self._extra:
            self._rewind(len(self._tokens))
        self._rows = _NO_ROWS

    def _run(self, sequence: TokenSequence, tokens: Sequence[int]) -> None:
        try:
            sequence.append(tokens)
        except BaseException:  # whatever it was (a KeyboardInterrupt too), nobody knows how far the run came
            self.close()
            raise
        self._note(tokens)

    def _note(self, tokens: Sequence[int]) -> None:
        self._tokens += tokens
        self._long = self._switch is not None and len(self._tokens) > self._switch

    def _rewind(self, length: int) -> None:
        try:
            self._opened().rewind(length)
        except BaseException:
            self.close()
            raise
        del self._tokens[length:]
        self._chosen, self._rows, self._extra = None, _NO_ROWS, 0


def check_memory(tokens: int, bytes_per_token: int, free: int | None) -> None:
    """Refuse a KV cache that takes more memory than is free; None is not known, and not checked.

    Raises:
        UsageError: it does.

    """
    if free is not None and tokens * bytes_per_token > free:
        raise UsageError(
            f"the KV cache of {tokens} tokens takes {size(tokens * bytes_per_token)} and {size(free)} of "
            "memory are free; ask for fewer tokens (--max-tokens) or shorten the prompt"
        )


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many leading tokens two texts share."""
    most = min(len(left), len(right))
    first, second = np.asarray(left[:most]), np.asarray(right[:most])
    differing = np.flatnonzero(first != second)
    return int(differing[0]) if len(differing) else most
