"""A smaller model that writes drafts for a larger one's texts (Leviathan et al., arXiv:2211.17192).

A draft is what the smaller model would write greedily. What of it comes true is settled as for every draft, by the
larger model alone: `speculation` has how.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from ...configs import EngineError, UsageError
from .kvcache import KvCache
from .sampling import log_softmax
from .speculation import NO_DRAFT, Draft

# Of the newest measurement in what a token takes.
_SETTLING = 0.2
# A chance that is less is not worth a token, whatever that takes.
_LEAST_CHANCE = 0.2
# What a token of a draft adds to the larger model's step, in the time of a step of one token: 0.1 to 0.25 measured.
_RUNNING_AHEAD = 0.2
# Tokens of a draft while it is not known what they take.
_TO_MEASURE = 2
# Kinds of guesses, by how sure the smaller model is of them.
_KINDS = 8
# Trust in the smaller model's own chances, to begin with: as good as so many guesses of that kind.
_TRUST = 2.0
# Of what was learnt, from one guess of a kind to the next, and of gains, from one draft to the next.
_REMEMBERED = 0.97
# Steps of the larger model that drafts may lose, of late, before the text goes on without them for a while: so many
# tokens the first time, twice as many after each further loss.
_PATIENCE, _PAUSE, _LONGEST_PAUSE = 1.0, 16, 256


class Agreement:
    """How often the larger model comes to the token that the smaller one would write, learnt from all texts.

    It is learnt from what was not run ahead, too: the text says in the end what the larger model would have made of it.
    """

    def __init__(self) -> None:
        self._came = [0.0] * _KINDS
        self._seen = [0.0] * _KINDS

    def chance(self, own: float) -> float:
        """Return the chance of a token to which the smaller model gives this one."""
        kind = self._kind(own)
        return (_TRUST * own + self._came[kind]) / (_TRUST + self._seen[kind])

    def note(self, own: float, *, came: bool) -> None:
        """Note whether such a token came."""
        kind = self._kind(own)
        self._came[kind] = _REMEMBERED * self._came[kind] + came
        self._seen[kind] = _REMEMBERED * self._seen[kind] + 1

    def _kind(self, own: float) -> int:
        return min(int(own * _KINDS), _KINDS - 1)


class DraftModel:
    """A loaded model that drafts: makes a drafter for each text, and learns from all what that takes."""

    def __init__(self, new_cache: Callable[[], KvCache], context_length: int, vocab_size: int, *, always: bool) -> None:
        """Take a model.

        Args:
            new_cache: returns an empty KV cache of it.
            context_length: tokens that it can hold.
            vocab_size: tokens that may be drafted: those that the larger model has, too.
            always: whether to draft as many tokens as are asked for, instead of those that are likely to pay.

        """
        self.new_cache = new_cache
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.always = always
        self.token_seconds = self.step_seconds = 0.0
        """What a token of a draft takes, and a step of the larger model without one; 0 where it is not known yet."""
        self.agreement = Agreement()

    def drafter(self) -> "ModelDrafter":
        """Return what drafts for one text."""
        return ModelDrafter(self)


class ModelDrafter:
    """Drafts for one text; see `Drafter`. Its KV cache is given back with it."""

    def __init__(self, model: DraftModel) -> None:
        self._model = model
        self._cache = model.new_cache()
        self._tokens: list[int] = []
        self._off = False
        self._asked_at = self._left_at = 0.0
        self._known = self._ran = 0
        self._counts = False
        self._gained, self._rest, self._pause = 0.0, 0, _PAUSE
        self._guesses = deque[tuple[int, float]]()

    def extend(self, tokens: Sequence[int]) -> None:
        """Note tokens that the text has; see `Drafter.extend`."""
        self._tokens += tokens
        self._rest -= len(tokens)
        for token in tokens:
            if self._guesses:
                guess, own = self._guesses.popleft()
                self._model.agreement.note(own, came=guess == token)
                if guess != token:  # what follows was guessed after another token
                    self._guesses.clear()

    def draft(self, most: int) -> Draft:
        """Return what the smaller model would write; see `Drafter.draft`."""
        asked = time.perf_counter()
        if self._left_at:
            self._settle(asked)
        most = min(most, self._model.context_length - len(self._tokens) - 1)
        if not self._model.always and not (self._model.token_seconds and self._model.step_seconds):
            most = min(most, _TO_MEASURE)
        writes = not self._off and self._rest <= 0 and most > 0 and bool(self._tokens)
        self._asked_at, self._known, self._ran, self._counts = asked, len(self._tokens), 0, False
        draft = self._written(most) if writes else NO_DRAFT
        self._left_at = time.perf_counter()
        return draft

    def learn(self, drafted: int, accepted: int) -> None:
        """Note what became of the last draft; see `Drafter.learn`."""
        self._ran = drafted

    def _settle(self, now: float) -> None:
        """Learn from the larger model's last step what one takes, and what the draft before it gained."""
        model = self._model
        if not self._ran or not model.step_seconds:
            model.step_seconds = _settled(model.step_seconds, now - self._left_at)
        if model.always or not self._counts:
            return
        without = (len(self._tokens) - self._known) * model.step_seconds
        self._gained = _REMEMBERED * self._gained + without - (now - self._asked_at)
        if self._gained < -_PATIENCE * model.step_seconds:
            self._gained, self._rest, self._pause = 0.0, self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        elif self._gained > 0:
            self._pause = _PAUSE

    def _written(self, most: int) -> Draft:
        tokens, chances, chance = list[int](), list[float](), 1.0
        self._guesses.clear()
        try:
            # Where this takes a new reservation, as much again is reserved: a text grows token by token.
            self._cache.reserve(len(self._tokens) + most, spare=len(self._tokens))
            is_first, begun = not self._cache.tokens, time.perf_counter()
            for _ in self._cache.prefill(self._tokens):
                pass
            if is_first:  # a prompt is run once, and later drafts begin with the few tokens that came since
                begun = time.perf_counter()
            self._counts = not is_first
            while True:
                log_chances = log_softmax(self._cache.logits()[None, : self._model.vocab_size])[0]
                token = int(log_chances.argmax())
                own = float(np.exp(log_chances[token]))
                self._guesses.append((token, own))
                chance *= self._model.agreement.chance(own)
                if not self._model.always and chance < self._worth():
                    break
                tokens.append(token)
                chances.append(chance)
                if len(tokens) == most:
                    break
                self._cache.append(token)
            if not is_first or len(tokens) > 1:
                taken = (time.perf_counter() - begun) / max(len(tokens) - is_first, 1)
                self._model.token_seconds = _settled(self._model.token_seconds, taken)
        except (UsageError, EngineError):  # there is no memory for it, or it failed: the text goes on without
            self._off = True
            self._cache.close()
            return NO_DRAFT
        return Draft(tokens, chances)

    def _worth(self) -> float:
        """Return the chance from which on a token is worth the time that writing it and running it ahead takes."""
        if not self._model.token_seconds or not self._model.step_seconds:
            return _LEAST_CHANCE
        return max(self._model.token_seconds / self._model.step_seconds + _RUNNING_AHEAD, _LEAST_CHANCE)


def _settled(before: float, now: float) -> float:
    return before + _SETTLING * (now - before) if before else now
