"""The responses that a server keeps for a while, to be asked for again and gone on from."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json


@dataclass(frozen=True)
class Stored:
    """A response, and the conversation up to its end."""

    response: dict[str, Any]
    messages: Sequence[dict[str, Any]]
    """As chats have them; without the instructions, which are not carried over."""


class ResponseStore:
    """Keeps the latest responses in memory, within bounds; the longest unused go first."""

    def __init__(self, most: int = 1024, most_bytes: int = 64 * 2**20) -> None:
        """Begin with none.

        Args:
            most: responses at most.
            most_bytes: bytes at most, of all responses and their conversations as JSON.

        """
        self._most = most
        self._most_bytes = most_bytes
        # As JSON, since small objects take many times as much as their text.
        self._kept: OrderedDict[str, tuple[bytes, bytes]] = OrderedDict()
        self.num_bytes = 0
        """Bytes of all that is kept."""

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, stored: Stored) -> None:
        """Keep a response; one that is larger than all bounds is gone at once."""
        self.drop(stored.response["id"])
        kept = to_json(stored.response), to_json(stored.messages)
        self._kept[stored.response["id"]] = kept
        self.num_bytes += _size(kept)
        while len(self._kept) > self._most or self.num_bytes > self._most_bytes:
            _, gone = self._kept.popitem(last=False)
            self.num_bytes -= _size(gone)

    def find(self, number: str) -> Stored | None:
        """Return a response by its id; None where it is not kept, or no more."""
        if number not in self._kept:
            return None
        self._kept.move_to_end(number)
        response, messages = self._kept[number]
        return Stored(from_json(response), from_json(messages))

    def drop(self, number: str) -> bool:
        """Keep a response no longer; return whether it was kept."""
        gone = self._kept.pop(number, (b"", b""))
        self.num_bytes -= _size(gone)
        return _size(gone) > 0


def _size(kept: tuple[bytes, bytes]) -> int:
    return sum(map(len, kept))
