"""Texts whose keys and values are in memory, and what a new one can take over from them."""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

_TOKEN = np.dtype(">u4")  # the highest byte first: then texts in the order of their bytes are in that of their tokens
_MARK_BYTES = 1
_TEXT_BYTES = 700
"""What a text takes beside its tokens and values; a test measures it."""


def _key(tokens: Sequence[int], beyond: bool) -> bytes:
    return bytes([beyond]) + np.asarray(tokens, _TOKEN).tobytes()


class Kept:
    """A text whose keys and values lie outside the arena."""

    def __init__(self, tokens: Sequence[int], beyond: bool, values: np.ndarray) -> None:
        """Take what is kept.

        Args:
            tokens: token ids.
            beyond: whether keys were made with LongRoPE's long factors.
            values: its keys and values, as `Arena.take_out` returns them.

        """
        self.key = _key(tokens, beyond)
        """Its tokens in few bytes, after what kind of keys it has."""
        self.values = values

    def __len__(self) -> int:
        return len(self.key) // _TOKEN.itemsize

    @property
    def tokens(self) -> tuple[int, ...]:
        """Its token ids, made anew each time."""
        return tuple(np.frombuffer(self.key, _TOKEN, offset=_MARK_BYTES).tolist())

    @property
    def beyond(self) -> bool:
        """Whether its keys were made with LongRoPE's long factors."""
        return bool(self.key[0])

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that it takes, all told."""
        return self.values.nbytes + len(self.key) + _TEXT_BYTES


class PrefixStore:
    """Texts that were moved out of the arena, within a bound of bytes; the longest unused goes first.

    No text is kept with which another one begins. So in the order of their bytes, the text that shares the longest
    beginning with another stands next to it.
    """

    def __init__(self, limit: int) -> None:
        """Begin empty, to hold `limit` bytes at most."""
        self.limit = limit
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()  # the longest unused first
        self._sorted: list[bytes] = []
        self.num_bytes = 0
        """Bytes that it takes."""
        self.num_tokens = 0
        """Tokens of all texts that it holds."""

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._kept.values())

    def longest(self, tokens: Sequence[int], beyond: bool) -> tuple[Kept | None, int]:
        """Return the text that shares the longest beginning with this one, and how many tokens that is."""
        key = _key(tokens, beyond)
        place = bisect_left(self._sorted, key)
        shared = [(_shared(key, near), near) for near in self._sorted[max(0, place - 1) : place + 1]]
        length, near = max(shared, default=(0, b""))
        return (self._kept[near], length) if length else (None, 0)

    def holds(self, tokens: Sequence[int], beyond: bool) -> bool:
        """Return whether it has a text that begins with this one, and note that it is of use."""
        key = _key(tokens, beyond)
        place = bisect_left(self._sorted, key)
        if place == len(self._sorted) or not self._sorted[place].startswith(key):
            return False
        self._kept.move_to_end(self._sorted[place])
        return True

    def add(self, kept: Kept) -> None:
        """Keep a text, and give up others for it; one that is larger than the bound is not kept."""
        size = kept.num_bytes
        if size > self.limit or self.holds(kept.tokens, kept.beyond):
            return
        place = bisect_left(self._sorted, kept.key)
        if place and kept.key.startswith(before := self._sorted[place - 1]):
            self._forget(before)
        while self.num_bytes + size > self.limit:
            self.give_up_one()
        self._kept[kept.key] = kept
        insort(self._sorted, kept.key)
        self.num_bytes += size
        self.num_tokens += len(kept)

    def use(self, kept: Kept) -> None:
        """Note that a text was of use."""
        self._kept.move_to_end(kept.key)

    def give_up_one(self) -> bool:
        """Forget the longest unused text; return whether there was one."""
        if not self._kept:
            return False
        self._forget(next(iter(self._kept)))
        return True

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self._sorted.clear()
        self.num_bytes = self.num_tokens = 0

    def _forget(self, key: bytes) -> None:
        kept = self._kept.pop(key)
        del self._sorted[bisect_left(self._sorted, key)]
        self.num_bytes -= kept.num_bytes
        self.num_tokens -= len(kept)


def _shared(left: bytes, right: bytes) -> int:
    """Return how many leading tokens two keys share."""
    most = min(len(left), len(right))
    if left[:most] != right[:most]:
        first, second = np.frombuffer(left, np.uint8, most), np.frombuffer(right, np.uint8, most)
        most = int((first != second).argmax())
    return max(0, most - _MARK_BYTES) // _TOKEN.itemsize
