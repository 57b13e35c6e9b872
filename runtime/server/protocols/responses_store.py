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


@dataclass(frozen=True)
class Kept:
    """A stored response as JSON, since small objects take many times as much as their text; parsed when asked for."""

    _response: bytes
    _messages: bytes

    @classmethod
    def of(cls, stored: Stored) -> "Kept":
        """Return what is kept of a response."""
        return cls(to_json(stored.response), to_json(stored.messages))

    @property
    def response(self) -> dict[str, Any]:
        """See `Stored`."""
        return from_json(self._response)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """See `Stored`."""
        return from_json(self._messages)

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        return len(self._response) + len(self._messages)


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
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self.num_bytes = 0
        """Bytes of all that is kept."""

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, stored: Stored) -> None:
        """Keep a response; one that is larger than all bounds is gone at once."""
        self.drop(stored.response["id"])
        kept = self._kept[stored.response["id"]] = Kept.of(stored)
        self.num_bytes += kept.num_bytes
        while len(self._kept) > self._most or self.num_bytes > self._most_bytes:
            _, gone = self._kept.popitem(last=False)
            self.num_bytes -= gone.num_bytes

    def find(self, number: str) -> Kept | None:
        """Return a response by its id; None where it is not kept, or no more."""
        if number not in self._kept:
            return None
        self._kept.move_to_end(number)
        return self._kept[number]

    def drop(self, number: str) -> bool:
        """Keep a response no longer; return whether it was kept."""
        if gone := self._kept.pop(number, None):
            self.num_bytes -= gone.num_bytes
        return gone is not None
