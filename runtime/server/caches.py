"""The KV caches of a server: few, kept after an answer, and given to the request that shares most with them."""

from collections.abc import Sequence

from ..decoding.engine import GuidedDraws
from ..decoding.kvcache import KvCache
from ..model import Model


class CachePool:
    """At most `size` caches, lent to one answer at a time; the longest unused is given up first."""

    def __init__(self, model: Model, size: int) -> None:
        self._model = model
        self._size = size
        self._idle: list[KvCache] = []  # the longest unused first
        self.lent = 0
        """Caches in use now."""

    @property
    def cached_tokens(self) -> int:
        """Tokens in the caches that nobody uses now."""
        return sum(len(cache.tokens) for cache in self._idle)

    def take(self, prompt: Sequence[int], guided: GuidedDraws | None = None) -> KvCache:
        """Return a cache for a prompt: one that holds much of it, else a new one, else the longest unused.

        "Much" is half of the prompt or half of what is cached: less than that saves little here, and costs whoever
        comes back for the rest of that cache all of it. What is cached under guidance is of use under the same only.
        """
        fitting = [cache for cache in self._idle if cache.guided == guided]
        best = max(fitting, key=lambda cache: cache.shared(prompt), default=None)
        if best is not None:
            shared = best.shared(prompt)
            if shared and 2 * shared >= min(len(prompt), len(best.tokens)):
                return self._lend(best)
        if self.lent + len(self._idle) < self._size or not self._idle:
            self.lent += 1
            return self._model.new_cache()
        return self._lend(self._idle[0])

    def give_back(self, cache: KvCache) -> None:
        """Take a cache back after an answer, and keep what it holds for the next one."""
        self.lent -= 1
        if cache.tokens:
            self._idle.append(cache)
        else:
            cache.close()

    def give_up_one(self) -> bool:
        """Free the memory of the longest unused cache; return whether there was one."""
        if not self._idle:
            return False
        self._idle.pop(0).close()
        return True

    def _lend(self, cache: KvCache) -> KvCache:
        self._idle.remove(cache)
        self.lent += 1
        return cache
