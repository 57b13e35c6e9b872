"""Keys and values of texts on disk, so that a server that starts again need not run its system prompts again.

A text is cut into blocks of so many tokens. A block's name is the hash of everything up to its end, so texts that begin
alike share the files of their beginning, and a conversation that goes on adds only what is new. A folder belongs to one
package, one version of ONNX Runtime and one kind of processor: under others the same tokens have other bits.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np

from ...configs.files import replacing
from ...configs.locks import try_lock
from ...configs.sizes import size
from .arena import CacheShape

BLOCK = 64
"""Tokens of a block."""
_FORMAT = b"phi3-onnx prefix 1\n"
_SUFFIX = ".kv"
_DIGEST = 32
_LOCK = "lock"
_LOCK_SECONDS = 1
_LOG = logging.getLogger(__name__)


class PrefixFiles:
    """Blocks of texts in one folder, within a bound of bytes; the longest unused go first.

    Several processes may have one folder, each with a package of its own: the bound is for all of them together.
    """

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
        self._others: dict[Path, tuple[float, int]] = {}  # of other packages: when each was of use, and its bytes
        self._seen: dict[Path, int] = {}  # when each folder's files changed last, as far as this process knows
        self._gone: set[str] = set()
        self._block_bytes = len(_FORMAT) + _DIGEST + 4 * BLOCK + BLOCK * shape.bytes_per_token
        self.broken = False
        """Whether nothing can be written."""
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds what people wrote
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._look()
        except OSError as error:
            self._give_up(error)

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks in the folder, as far as this process knows."""
        return len(self._names) * self._block_bytes + sum(length for _, length in self._others.values())

    def _look(self) -> None:
        """Look for what other processes wrote and removed, in those folders that changed."""
        for folder in {path for path in self._root.iterdir() if path.is_dir()} | self._seen.keys():
            changed = _changed(folder)
            if self._seen.get(folder) == changed:
                continue
            found = sorted((state.st_mtime, path, state.st_size) for path, state in _blocks(folder))
            if folder == self._folder:
                names = {path.stem: path for _, path, _ in found}
                self._gone |= self._names.keys() - names.keys()
                self._names = {name: names.pop(name) for name in self._names if name in names} | names
            else:
                self._others = {path: entry for path, entry in self._others.items() if path.parent != folder}
                self._others |= {path: (used, length) for used, path, length in found}
            self._seen[folder] = changed

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
        content = np.asarray(tokens[stop - BLOCK : stop], np.int32).tobytes()
        content += b"".join(np.ascontiguousarray(array, self._shape.dtype).tobytes() for array in arrays)
        path = self._folder / f"{name}{_SUFFIX}"
        try:
            lock = try_lock(self._root / _LOCK, _LOCK_SECONDS)
            if lock is None:  # it is not worth waiting for
                self._gone.add(name)
                return
            with lock:
                self._look()
                if not self._make_room():
                    self.broken = True
                    return
                with replacing(path) as beside:
                    beside.write_bytes(_FORMAT + sha256(content).digest() + content)
                self._names[name] = path
                self._seen[self._folder] = _changed(self._folder)
        except OSError as error:
            self._give_up(error)

    def _make_room(self) -> bool:
        """Remove what was of no use for longest, of any package, until a block has room; return whether it has."""
        while self.num_bytes + self._block_bytes > self.limit:
            other = min(self._others, key=self._others.__getitem__, default=None)
            name = next(iter(self._names), None)
            if other and (name is None or self._others[other][0] <= _used(self._names[name])):
                used, length = self._others[other]
                if _used(other) > used:  # its own process used it meanwhile
                    self._others[other] = _used(other), length
                    continue
                del self._others[other]
                other.unlink(missing_ok=True)
            elif name is not None:
                self._names.pop(name).unlink(missing_ok=True)
                self._gone.add(name)
            else:
                return False
        return True

    def _read(self, name: str, tokens: Sequence[int]) -> list[np.ndarray] | None:
        """Return the arrays of a block; None where it cannot be used, after a word why."""
        path, shape = self._names[name], self._shape
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # another process wanted its room
            del self._names[name]
            return None
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


def _changed(folder: Path) -> int:
    """Return when files came into a folder or left it, in nanoseconds since 1970; 0 where it is gone."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _used(path: Path) -> float:
    """Return when a block was of use last, in seconds since 1970; 0 where it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0


def _blocks(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(FileNotFoundError):
            yield path, path.stat()


def _names(tokens: Sequence[int], beyond: bool) -> Iterator[tuple[str, int]]:
    """Yield the name of each whole block of a text, and its end."""
    digest = sha256(b"beyond" if beyond else b"")
    for stop in range(BLOCK, len(tokens) + 1, BLOCK):
        digest.update(np.asarray(tokens[stop - BLOCK : stop], np.int32).tobytes())
        yield digest.hexdigest()[:40], stop
