"""The nodes of an ONNX file, read from protobuf's wire format: the package `onnx` belongs to the export extra.

Field numbers are those of onnx.proto, the format that of https://protobuf.dev/programming-guides/encoding. Weights are
skipped, wherever they lie.
"""

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...configs import PackageError

_GRAPH, _NODE = 7, 1
_INPUT, _OP_TYPE, _ATTRIBUTE, _DOMAIN = 1, 4, 5, 7
_NAME, _INTEGER = 1, 3
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


@dataclass(frozen=True)
class GraphNode:
    """A node of the main graph."""

    operator: str
    domain: str
    inputs: tuple[str, ...]
    """Names; empty for one that is left out."""
    integers: Mapping[str, int]
    """Its integer attributes, by name; those of another type are here as 0."""


def read_nodes(path: Path) -> list[GraphNode]:
    """Return the nodes of the main graph of an ONNX file, in order.

    Raises:
        PackageError: the file cannot be read, or is no ONNX model.

    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return [
                _node(content, *place)
                for graph in _places(content, 0, len(content), _GRAPH)
                for place in _places(content, *graph, _NODE)
            ]
    except (OSError, ValueError, IndexError) as error:
        raise PackageError(f"{path} cannot be read as an ONNX model: {error}; get the package again") from error


def sliding_window(path: Path) -> int | None:
    """Return the smallest sliding window of an ONNX file's attention, in tokens; None where it has none.

    Raises:
        PackageError: the file cannot be read, or is no ONNX model.

    """
    nodes = (node for node in read_nodes(path) if node.operator == "GroupQueryAttention")
    return min((size for node in nodes if (size := node.integers.get("local_window_size", -1)) > 0), default=None)


def _node(content: mmap.mmap, start: int, stop: int) -> GraphNode:
    texts: dict[int, list[str]] = {_INPUT: [], _OP_TYPE: [], _DOMAIN: []}
    integers: dict[str, int] = {}
    for field, _value, place in _fields(content, start, stop):
        if field in texts:
            texts[field].append(_text(content, place))
        elif field == _ATTRIBUTE:
            name, number = "", 0
            for part, part_value, part_place in _fields(content, *place):
                if part == _NAME:
                    name = _text(content, part_place)
                elif part == _INTEGER:
                    number = part_value
            integers[name] = number
    operator, domain = ("".join(texts[field][-1:]) for field in (_OP_TYPE, _DOMAIN))
    return GraphNode(operator, domain, tuple(texts[_INPUT]), integers)


def _text(content: mmap.mmap, place: tuple[int, int]) -> str:
    return content[slice(*place)].decode("utf-8")


def _places(content: mmap.mmap, start: int, stop: int, wanted: int) -> Iterator[tuple[int, int]]:
    return (place for field, _, place in _fields(content, start, stop) if field == wanted)


def _fields(content: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Yield number, value (of a varint) and place (of what has a length) of each field of a message."""
    while start < stop:
        key, start = _varint(content, start)
        kind, value, place = key & 7, 0, (start, start)
        if kind == _VARINT:
            value, start = _varint(content, start)
        elif kind == _LENGTH:
            length, start = _varint(content, start)
            place = (start, start + length)
            start += length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            start += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"unknown wire type {kind}")
        if start > stop:
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, value, place


def _varint(content: mmap.mmap, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[start]
        start += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            # Negative numbers are ten bytes of two's complement.
            return (value - (1 << 64) if value >> 63 else value), start
