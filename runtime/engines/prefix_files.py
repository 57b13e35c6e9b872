"""Keys and values of texts on disk, so that a server that starts again need not run its system prompts again.

A text is cut into blocks of so many tokens. A block's name is the hash of everything up to its end, so texts that begin
alike share the files of their beginning, and a conversation that goes on adds only what is new. A folder belongs to one
package, one version of ONNX Runtime and one kind of processor: under others the same tokens have other bits.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from ...configs.files import replacing
from ...configs.sizes import size
from .arena import CacheShape

BLOCK = 64
"""Tokens of a block."""
_FORMAT = b"phi3-onnx prefix 1\n"
_SUFFIX = ".kv"
_DIGEST = 32
_LOG = logging.getLogger(__name__)


class PrefixFiles:
    """Blocks of texts in one folder, within a bound of bytes; the longest unused go first."""

    def __init__(self, folder: Path, identity: Sequence[str], shape: CacheShape, limit: int) -> None:
        """Look at what is there.

        Args:
            folder: of all packages; the blocks lie in a folder within it.
            identity: what decides the bits: the package's hashes, versions, the processor.
            shape: of one token's keys and values.
            limit: bytes that the folder may hold in all.

        """
        key = sha256(json.dumps([*identity, repr(shape)]).encode()).hexdigest()[:32]
        self.limit = limit
        self._root, self._folder, self._shape = folder, folder / key, shape
        self._names: dict[str, Path] = {}  # of this package, the longest unused first
        self._others: list[tuple[Path, int]] = []  # of other packages, the longest unused first
        self._gone: set[str] = set()
        self._block_bytes = len(_FORMAT) + _DIGEST + 4 * BLOCK + BLOCK * shape.bytes_per_token
        self.num_bytes = 0
        """Bytes of all blocks in the folder, as far as this process knows."""
        self.broken = False
        """Whether nothing can be written."""
        self._look()

    def _look(self) -> None:
        found = list[tuple[float, Path, int]]()
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds what people wrote
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for path in self._root.glob(f"*/*{_SUFFIX}"):
                state = path.stat()
                found.append((state.st_mtime, path, state.st_size))
        except OSError as error:
            self._give_up(error)
        for _, path, length in sorted(found):
            self.num_bytes += length
            if path.parent == self._folder:
                self._names[path.stem] = path
            else:
                self._others.append((path, length))

    def stored(self, tokens: Sequence[int], beyond: bool) -> int:
        """Return how many leading tokens of a text there are blocks of."""
        count = 0
        for name, stop in _names(tokens, beyond):
            if name not in self._names:
                break
            count = stop
        return count

    def read(
        self, tokens: Sequence[int], beyond: bool, start: int, stop: int
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Yield blocks of a text in turn, up to one that is missing or damaged, which counts as missing from then on.

        Args:
            tokens: the text.
            beyond: whether LongRoPE's long factors hold for it.
            start: tokens that are not needed; the block that holds the next one is the first.
            stop: tokens that `stored` returned.

        Yields:
            The block's first token, and keys and values of each layer, [KV heads, BLOCK, head size].

        """
        used = list[str]()
        for name, end in _names(tokens[:stop], beyond):
            used.append(name)
            if end <= start:
                continue
            arrays = self._read(name, tokens[end - BLOCK : end])
            if arrays is None:
                break
            yield end - BLOCK, arrays
        self._use(used)

    def unsaved(self, tokens: Sequence[int], beyond: bool) -> int | None:
        """Return the end of the first block of a text that could be saved and is not; None where there is none."""
        if self.broken:
            return None
        for name, stop in _names(tokens, beyond):
            if name in self._gone:  # what had to go for others would send them away in turn
                return None
            if name not in self._names:
                return stop
        return None

    def save(self, tokens: Sequence[int], beyond: bool, stop: int, arrays: Sequence[np.ndarray]) -> None:
        """Write one block.

        Args:
            tokens: the text.
            beyond: whether LongRoPE's long factors hold for it.
            stop: the block's end, as `unsaved` returned it.
            arrays: keys and values of each layer, [KV heads, BLOCK, head size].

        """
        *_, (name, _) = _names(tokens[:stop], beyond)
        if not self._make_room():
            self.broken = True
            return
        content = np.asarray(tokens[stop - BLOCK : stop], np.int32).tobytes()
        content += b"".join(np.ascontiguousarray(array, self._shape.dtype).tobytes() for array in arrays)
        path = self._folder / f"{name}{_SUFFIX}"
        try:
            with replacing(path) as beside:
                beside.write_bytes(_FORMAT + sha256(content).digest() + content)
        except OSError as error:
            self._give_up(error)
            return
        self._names[name] = path
        self.num_bytes += self._block_bytes

    def _make_room(self) -> bool:
        while self.num_bytes + self._block_bytes > self.limit:
            if self._others:
                path, length = self._others.pop(0)
            elif self._names:
                name = next(iter(self._names))
                path, length = self._names.pop(name), self._block_bytes
                self._gone.add(name)
            else:
                return False
            path.unlink(missing_ok=True)
            self.num_bytes -= length
        return True

    def _read(self, name: str, tokens: Sequence[int]) -> list[np.ndarray] | None:
        """Return the arrays of a block; None where it cannot be used, after a word why."""
        path, shape = self._names[name], self._shape
        try:
            content = path.read_bytes()
        except OSError as error:
            return self._drop(name, str(error))
        head = len(_FORMAT) + _DIGEST
        if len(content) != self._block_bytes or not content.startswith(_FORMAT):
            return self._drop(name, f"{len(content)} bytes of another form than the {self._block_bytes} expected")
        if sha256(memoryview(content)[head:]).digest() != content[len(_FORMAT) : head]:
            return self._drop(name, "its content does not fit its hash")
        if not np.array_equal(np.frombuffer(content, np.int32, BLOCK, head), np.asarray(tokens)):
            return self._drop(name, "it is of another text")
        values = np.frombuffer(content, shape.dtype, offset=head + 4 * BLOCK)
        return list(values.reshape(2 * shape.layers, shape.kv_heads, BLOCK, shape.head_dim))

    def _drop(self, name: str, why: str) -> None:
        path = self._names.pop(name)
        _LOG.warning("the cache file %s is ignored and removed: %s", path, why)
        path.unlink(missing_ok=True)
        self.num_bytes -= self._block_bytes

    def _use(self, names: Sequence[str]) -> None:
        """Note that blocks were of use; the beginning of a text goes last, since the rest is of no use without it."""
        for name in reversed(names):
            if path := self._names.pop(name, None):
                self._names[name] = path
                try:
                    path.touch()
                except OSError as error:
                    _LOG.debug("%s: %s", path, error)

    def _give_up(self, error: OSError) -> None:
        self.broken = True
        _LOG.warning("texts are not kept in %s any more: %s", self._folder, error.strerror or error)

    def __str__(self) -> str:
        return f"{self._root}: {size(self.num_bytes)} of {size(self.limit)}"


def _names(tokens: Sequence[int], beyond: bool) -> Iterator[tuple[str, int]]:
    """Yield the name of each whole block of a text, and its end."""
    digest = sha256(b"beyond" if beyond else b"")
    for stop in range(BLOCK, len(tokens) + 1, BLOCK):
        digest.update(np.asarray(tokens[stop - BLOCK : stop], np.int32).tobytes())
        yield digest.hexdigest()[:40], stop
