"""The responses that a server keeps for a while, to be asked for again and gone on from."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json


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
        self._kept: OrderedDict[str, tuple[Stored, int]] = OrderedDict()
        self.num_bytes = 0
        """Bytes of all that is kept, as JSON."""

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, stored: Stored) -> None:
        """Keep a response; one that is larger than all bounds is gone at once."""
        size = len(to_json(stored.response)) + len(to_json(stored.messages))
        self._kept[stored.response["id"]] = stored, size
        self.num_bytes += size
        while len(self._kept) > self._most or self.num_bytes > self._most_bytes:
            _, (_, gone) = self._kept.popitem(last=False)
            self.num_bytes -= gone

    def find(self, number: str) -> Stored | None:
        """Return a response by its id; None where it is not kept, or no more."""
        if number not in self._kept:
            return None
        self._kept.move_to_end(number)
        return self._kept[number][0]

    def drop(self, number: str) -> bool:
        """Keep a response no longer; return whether it was kept."""
        _, size = self._kept.pop(number, (None, 0))
        self.num_bytes -= size
        return size > 0
