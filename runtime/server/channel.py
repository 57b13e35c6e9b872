"""The way between the web process and the engine's: messages in frames, on a pair of sockets.

What comes with every token has a form of its own: pickling it took longer, in both processes, than all else that is
done for it. Sockets, since an event loop reads them by itself on every platform.
"""

import asyncio
import pickle
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

from .messages import FromEngine, Piece, ToEngine

_HEAD = struct.Struct("<IB")  # bytes that follow, and what they are
_PIECE_HEAD = struct.Struct("<QII")  # id, choice, tokens; the text follows
_PICKLED, _PIECE = 0, 1
_READ_BYTES = 2**16


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets, one for each process."""
    pair = socket.socketpair()
    for end in pair:
        if end.family == socket.AF_INET:  # Windows has no other kind, and would hold small messages back
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return pair


def encode(message: FromEngine | ToEngine) -> bytes:
    """Return a message as a frame."""
    if isinstance(message, Piece) and not message.logprobs:
        body, kind = _PIECE_HEAD.pack(message.id, message.choice, message.tokens) + message.text.encode(), _PIECE
    else:
        body, kind = pickle.dumps(message, pickle.HIGHEST_PROTOCOL), _PICKLED
    return _HEAD.pack(len(body), kind) + body


class Decoder:
    """Takes bytes as they come, and gives the messages that are complete."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Return the messages that `data` completes."""
        rest = self._rest
        if not rest:
            messages, end = _decoded(data)
            if end < len(data):
                self._rest = bytearray(data[end:])
            return messages
        rest += data  # in place: a frame of many reads is not copied for each of them
        messages, end = _decoded(rest)
        if end:
            self._rest = rest[end:]
        return messages


def _decoded(data: bytes | bytearray) -> tuple[list[Any], int]:
    """Return the messages of the frames that are complete, and where the last one ends."""
    start, messages = 0, []
    while len(data) - start >= _HEAD.size:
        length, kind = _HEAD.unpack_from(data, start)
        begin, end = start + _HEAD.size, start + _HEAD.size + length
        if end > len(data):
            break
        if kind == _PIECE:
            number, choice, tokens = _PIECE_HEAD.unpack_from(data, begin)
            messages.append(Piece(number, choice, data[begin + _PIECE_HEAD.size : end].decode(), (), tokens))
        else:
            messages.append(pickle.loads(memoryview(data)[begin:end]))
        start = end
    return messages, start


class EngineEnd:
    """The engine's end, for one thread that waits where it has nothing else to do."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        self._socket = connection
        self._decoder = Decoder()
        self._messages: list[ToEngine] = []

    def send(self, message: FromEngine) -> None:
        """Send a message.

        Raises:
            OSError: the web process is gone.

        """
        self._socket.sendall(encode(message))

    def waiting(self) -> bool:
        """Return whether there is something to receive."""
        return bool(self._messages or select.select([self._socket], [], [], 0)[0])

    def receive(self) -> ToEngine:
        """Wait for the next message.

        Raises:
            EOFError: the web process is gone.
            OSError: likewise.

        """
        while not self._messages:
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise EOFError
            self._messages = self._decoder.feed(data)
        return self._messages.pop(0)


class WebEnd(asyncio.Protocol):
    """The web process's end, for its event loop."""

    def __init__(self, on_message: Callable[[FromEngine], None], on_end: Callable[[], None]) -> None:
        """Make one, for `loop.connect_accepted_socket`.

        Args:
            on_message: called with each message.
            on_end: called when the engine's end is closed, or this one.

        """
        self._on_message = on_message
        self._on_end = on_end
        self._decoder = Decoder()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note where to write."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Pass on what is complete."""
        for message in self._decoder.feed(data):
            self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """Say that it is over."""
        self._on_end()

    def send(self, message: ToEngine) -> None:
        """Send a message, or do nothing where the engine is gone."""
        if not self._transport.is_closing():
            self._transport.write(encode(message))

    def close(self) -> None:
        """Close it."""
        self._transport.close()
