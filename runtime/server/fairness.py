"""Clients share a server equally, and so do the users of one client: who may wait, and who is next.

A client alone may take everything, as if there were no shares. They matter where several want more than there is.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from .messages import Client

_T = TypeVar("_T")


def has_room(client: Client, held: Iterable[Client], parallel: int, queue: int) -> bool:
    """Return whether one more request may come in.

    Up to `parallel + queue` requests anybody's may. Beyond that, half of `queue` more may wait of users who hold less
    than their share of those places, and as many again of clients who do: a client that fills the queue shuts nobody
    out, and neither does one that makes up users.

    Args:
        client: whose it is.
        held: whose those are that are under way or wait, one entry for each.
        parallel: requests to work on side by side.
        queue: requests that may wait beyond those.

    """
    held = list(held)
    places = parallel + queue
    if len(held) < places:
        return True
    clients = Counter(other.host for other in held)
    users = Counter(other.user for other in held if other.host == client.host)
    share = places / len({*clients, client.host})
    if clients[client.host] < share:
        return len(held) < places + queue
    return users[client.user] < share / len({*users, client.user}) and len(held) < places + queue // 2


def in_turns(entries: Sequence[_T], client_of: Callable[[_T], Client]) -> list[_T]:
    """Return entries so that clients take turns, and the users of each; those of one user stay in their order."""
    of_client: dict[str, list[_T]] = defaultdict(list)
    of_user: dict[Client, int] = Counter()
    rounds: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        client = client_of(entry)
        of_client[client.host].append(entry)
        rounds[client.host].append(of_user[client])
        of_user[client] += 1
    if len(of_user) < 2:
        return list(entries)
    turns: list[tuple[int, _T]] = []
    for host, own in of_client.items():
        by_round = sorted(zip(rounds[host], own, strict=True), key=lambda pair: pair[0])
        turns += [(number, entry) for number, (_, entry) in enumerate(by_round)]
    return [entry for _, entry in sorted(turns, key=lambda turn: turn[0])]
