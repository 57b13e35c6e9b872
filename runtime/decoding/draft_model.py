"""A smaller model that writes drafts for a larger one's texts (Leviathan et al., arXiv:2211.17192).

A draft is what the smaller model would write greedily. What of it comes true is settled as for every draft, by the
larger model alone: `speculation` has how.
"""

import time
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
# Of what a token takes, for each token of the text without a draft, so that one slow moment is not for ever.
_REMEMBERED_TIME = 0.999
# How far drafts come true as often as the smaller model says, to begin with: as good as so many tokens that did.
_TRUST = 3.0
# Of what was learnt, from one draft to the next, and for each token of the text, so that it is tried again.
_REMEMBERED, _REMEMBERED_IDLY = 0.93, 0.985


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
        """What a token of a draft takes, and a step of the larger model; 0 where that is not known yet."""

    def drafter(self) -> "ModelDrafter":
        """Return what drafts for one text."""
        return ModelDrafter(self)


class ModelDrafter:
    """Drafts for one text; see `Drafter`. Its KV cache is given back with it."""

    def __init__(self, model: DraftModel) -> None:
        self._model = model
        self._cache = model.new_cache()
        self._tokens: list[int] = []
        self._left_at = 0.0
        self._off = False
        self._came = self._tried = 0.0

    def extend(self, tokens: Sequence[int]) -> None:
        """Note tokens that the text has; see `Drafter.extend`."""
        self._tokens += tokens
        self._fade(_REMEMBERED_IDLY ** len(tokens))

    def draft(self, most: int) -> Draft:
        """Return what the smaller model would write; see `Drafter.draft`."""
        arrived = time.perf_counter()
        if self._left_at:  # the larger model's step, and what is around it
            self._model.step_seconds = _settled(self._model.step_seconds, arrived - self._left_at)
        most = min(most, self._model.context_length - len(self._tokens) - 1)
        if not self._model.always and not (self._model.token_seconds and self._model.step_seconds):
            most = min(most, _TO_MEASURE)
        hopeless = not self._model.always and self._trust() < self._worth()
        if hopeless:
            self._model.token_seconds *= _REMEMBERED_TIME
        draft = NO_DRAFT if self._off or hopeless or most < 1 or not self._tokens else self._written(most)
        self._left_at = time.perf_counter()
        return draft

    def learn(self, drafted: int, accepted: int) -> None:
        """Note what became of the last draft; see `Drafter.learn`."""
        self._fade(_REMEMBERED)
        self._tried += min(drafted, accepted + 1)
        self._came += accepted

    def _trust(self) -> float:
        """Return how often tokens of this text's drafts came true, of those before which all had."""
        return (_TRUST + self._came) / (_TRUST + self._tried)

    def _fade(self, share: float) -> None:
        self._came, self._tried = self._came * share, self._tried * share

    def _written(self, most: int) -> Draft:
        # The two models agree less, or more, than the smaller one is sure of itself.
        tokens, chances, chance, trust = list[int](), list[float](), 1.0, self._trust()
        try:
            # Where this takes a new reservation, as much again is reserved: a text grows token by token.
            self._cache.reserve(len(self._tokens) + most, spare=len(self._tokens))
            is_first, begun = not self._cache.tokens, time.perf_counter()
            for _ in self._cache.prefill(self._tokens):
                pass
            if is_first:  # a prompt is run once, and later drafts begin with the few tokens that came since
                begun = time.perf_counter()
            while True:
                log_chances = log_softmax(self._cache.logits()[None, : self._model.vocab_size])[0]
                token = int(log_chances.argmax())
                chance *= trust * float(np.exp(log_chances[token]))
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
