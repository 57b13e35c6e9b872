"""Running a package over passages of text and holding its logits against others of the same positions."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from ...configs import PackageError
from ...configs.progress import Counter, Progress
from ...runtime.engines.session import LogitsSession, open_session
from ...runtime.package import Package
from .corpus import Passage
from .metrics import Comparison

Rows = Callable[[int, int], np.ndarray]
"""Gives the logits of the positions from a first to before a last; called in order, without gaps."""

_CHUNK = 256


def compare_passage(
    comparison: Comparison,
    pieces: Iterable[tuple[int, np.ndarray]],
    passage: Passage,
    reference: Rows,
    *,
    keep: int = 0,
) -> np.ndarray:
    """Add the logits of one passage to a comparison, piece by piece.

    Args:
        comparison: what gathers the figures.
        pieces: the package's logits, as `package_logits` yields them.
        passage: the tokens.
        reference: the reference's logits of the same passage.
        keep: of how many positions at the end to return the package's logits, where there are so many.

    Returns:
        A copy of them, float32 [positions, vocabulary].

    Raises:
        PackageError: the graph cannot run the passage, or it is another model's.

    """
    kept, wanted_from = list[np.ndarray](), len(passage.ids) - keep
    for first, logits in pieces:
        # A first run may be thousands of tokens long; the reference's logits are never made for all of them at once.
        for offset in range(0, len(logits), _CHUNK):
            found = logits[offset : offset + _CHUNK]
            start, stop = first + offset, first + offset + len(found)
            wanted = reference(start, stop)
            if found.shape != wanted.shape:
                sizes = f"{found.shape[1]} and {wanted.shape[1]} logits"
                raise PackageError(f"package and reference give {sizes} for each token: they are different models")
            comparison.add(wanted, found, passage.ids[start + 1 : stop + 1])
        if first + len(logits) > wanted_from:
            kept.append(logits[max(wanted_from - first, 0) :].copy())
    return np.concatenate(kept) if kept else np.empty((0, 0), np.float32)


def package_logits(session: LogitsSession, passage: Passage) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first position, logits) of a package over a passage; see `LogitsSession.logits`."""
    # DirectML gets its prompts in one piece, as ONNX Runtime GenAI feeds it.
    chunk = len(passage.ids) if session.provider == "DmlExecutionProvider" else _CHUNK
    return session.logits(passage.ids, chunk=chunk, first=max(passage.first, chunk))


def counted(pieces: Iterable[tuple[int, np.ndarray]], counter: Counter) -> Iterator[tuple[int, np.ndarray]]:
    """Yield pieces of logits, and count the positions of each when it is done with."""
    for first, logits in pieces:
        yield first, logits
        counter.add(len(logits))


def text_counter(progress: Progress, what: str, passages: Sequence[Passage]) -> Counter:
    """Return what counts the tokens of passages; see `counted`."""
    return Counter(progress, what, sum(len(passage.ids) for passage in passages), "tokens")


def open_logits(package: Package, provider: str) -> LogitsSession:
    """Load a package's graph for its logits.

    Args:
        package: the package; its own LongRoPE switch counts, as no checkpoint says one.
        provider: where it runs: `cpu`, `cuda`, `dml`, or `auto` for what it was made for, if that runs here.

    Raises:
        PackageError: the graph cannot be loaded.
        ProviderError: the provider cannot run here.

    """
    switch = package.longrope_switch or 0
    return open_session(package.folder, provider, made_for=package.made_for, longrope=switch)[0]


def same_vocabulary(package: Package, size: int, other: str) -> None:
    """Refuse what cannot be compared.

    Args:
        package: one side.
        size: tokens that the other side has logits for.
        other: how to call the other side.

    Raises:
        PackageError: the sizes differ.

    """
    found = package.contract.vocab_size
    if found != size:
        raise PackageError(f"{package.folder} has {found} tokens, {other} {size}: they are different models")


class PackageRows:
    """Another package's logits in pieces of any size, of which no more than one run's are held."""

    def __init__(self, session: LogitsSession, passage: Passage) -> None:
        self._pieces = package_logits(session, passage)
        self._held = np.empty((0, 0), dtype=np.float32)

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Return float32 [stop - start, vocabulary]; `start` is where the last call stopped."""
        parts = [self._held[:0]] if self._held.shape[1] else []
        missing = stop - start
        while missing:
            if not len(self._held):
                _, self._held = next(self._pieces)
            parts.append(self._held[:missing])
            self._held = self._held[missing:]
            missing -= len(parts[-1])
        return np.concatenate(parts)
