"""Measuring a package on your own text: perplexity, and its distance from a reference."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..configs import UsageError
from ..configs.progress import Progress, silent
from ..export.sources.checkpoint import Checkpoint
from ..runtime.engines.session import LogitsSession
from ..runtime.package import Package, open_package
from ..runtime.text.tokenizer import Tokenizer
from .parity.compare import (
    PackageRows,
    Rows,
    compare_passage,
    counted,
    open_logits,
    package_logits,
    same_vocabulary,
    text_counter,
)
from .parity.corpus import Passage
from .parity.metrics import Comparison, Likelihood, Metrics, Perplexity
from .parity.result import finite, metrics_dict
from .parity.verify import versions

CONTEXT = 2048
"""Tokens of text that are run together."""
_TOKENS_AT_ONCE = 32768
"""Tokens that a PyTorch reference runs in one pass over its layers; 400 MB of hidden states for Phi-3-mini."""


@dataclass(frozen=True)
class Positions:
    """What was found at each position of the text, in its order, in nats."""

    nll: np.ndarray
    """Negative log-likelihood of each predicted token, of the package."""
    reference_nll: np.ndarray | None = None
    kl: np.ndarray | None = None
    """From the reference's distribution to the package's; the last position of a stretch has one too."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found."""

    package: str
    provider: str
    """The execution provider that the package ran on, by ONNX Runtime's name."""
    reference: str | None
    """The checkpoint or package it was compared with; None for none."""
    tokens: int
    context: int
    """Tokens of text that were run together; each is predicted from those before it there."""
    perplexity: Perplexity
    """The package's."""
    metrics: Metrics | None
    """The comparison with the reference; None without one."""
    versions: Mapping[str, str]
    created: str
    """UTC, ISO 8601."""
    seconds: float
    """Wall time."""
    positions: Positions
    """What a picture is drawn from; not in the JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values; those that are not finite become None."""
        table = asdict(self)
        del table["positions"]
        table["perplexity"] |= {"perplexity": self.perplexity.value, "standard_error": self.perplexity.standard_error}
        table["metrics"] = metrics_dict(self.metrics) if self.metrics else None
        return finite(table)


def evaluate(
    package: Path,
    text: str,
    *,
    reference: Checkpoint | Path | None = None,
    provider: str = "auto",
    max_tokens: int | None = None,
    context: int = CONTEXT,
    progress: Progress = silent,
) -> Evaluation:
    """Measure a package on a text.

    Args:
        package: the package's folder.
        text: what to predict. It is cut into stretches of `context` tokens, each run by itself.
        reference: what to compare with: a checkpoint, which runs in float32 PyTorch, or another package's folder.
        provider: where packages run: `cpu`, `cuda`, `dml`, or `auto`.
        max_tokens: take no more than so many tokens from the text's start.
        context: tokens of each stretch.
        progress: called with what is being done.

    Raises:
        UsageError: the text is too short, or the context longer than the model's.
        PackageError: a package is damaged or fails, or the reference is another model's.
        ProviderError: the provider cannot run here.
        SourceError: the checkpoint cannot be read.

    """
    started = time.perf_counter()
    opened = open_package(package)
    passages = stretches(opened, text, max_tokens, context)
    progress("loading the package")
    session = open_logits(opened, provider)
    metrics, name = None, None
    if reference is None:
        likelihood = _likelihood(session, passages, progress)
        perplexity, positions = likelihood.result(), Positions(likelihood.each())
    else:
        name, rows = _reference(reference, opened, provider, passages, progress)
        comparison = _compare(session, passages, rows, progress)
        metrics = comparison.result()
        perplexity = metrics.package
        kl, wanted, got = comparison.each()
        positions = Positions(got, wanted, kl)
    return Evaluation(
        package=opened.name,
        provider=session.provider,
        reference=name,
        tokens=sum(len(passage.ids) for passage in passages),
        context=context,
        perplexity=perplexity,
        metrics=metrics,
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - started, 1),
        positions=positions,
    )


def stretches(package: Package, text: str, max_tokens: int | None, context: int) -> list[Passage]:
    """Return the text's first tokens in stretches of `context`, each begun as the model's texts begin.

    Raises:
        UsageError: the text is too short, or the context longer than the model's.

    """
    if not 2 <= context <= package.context_length:
        raise UsageError(f"the context must be 2 to {package.context_length} tokens, got {context}")
    tokenizer = Tokenizer(package.folder)
    ids = np.array(tokenizer.encode(text, special=False), dtype=np.int64)[:max_tokens]
    if len(ids) < 2:
        raise UsageError(f"a text to measure must have 2 tokens or more, got {len(ids)}")
    prefix = np.array(tokenizer.encode("", special=True), dtype=np.int64)
    step = context - len(prefix)
    parts = [np.concatenate([prefix, ids[start : start + step]]) for start in range(0, len(ids), step)]
    return [Passage(part, 0, "text") for part in parts if len(part) > 1]


def _likelihood(session: LogitsSession, passages: Sequence[Passage], progress: Progress) -> Likelihood:
    likelihood = Likelihood()
    counter = text_counter(progress, "package", passages)
    for passage in passages:
        for start, logits in counted(package_logits(session, passage), counter):
            likelihood.add(logits, passage.ids[start + 1 : start + 1 + len(logits)])
    return likelihood


def _compare(
    session: LogitsSession, passages: Sequence[Passage], rows: Iterator[Rows], progress: Progress
) -> Comparison:
    comparison = Comparison()
    counter = text_counter(progress, "package", passages)
    for passage, wanted in zip(passages, rows, strict=True):
        compare_passage(comparison, counted(package_logits(session, passage), counter), passage, wanted)
    return comparison


def _reference(
    reference: Checkpoint | Path, package: Package, provider: str, passages: Sequence[Passage], progress: Progress
) -> tuple[str, Iterator[Rows]]:
    """Return the reference's name, and its logits of each passage in turn."""
    if isinstance(reference, Checkpoint):
        same_vocabulary(package, reference.config.vocab_size, reference.source)
        return f"{reference.origin} (PyTorch, float32)", _checkpoint_rows(reference, passages, progress)
    other = open_package(reference)
    same_vocabulary(package, other.contract.vocab_size, str(reference))
    progress("loading the reference")
    session = open_logits(other, provider)
    return f"{other.name} ({session.provider})", (PackageRows(session, passage) for passage in passages)


def _checkpoint_rows(checkpoint: Checkpoint, passages: Sequence[Passage], progress: Progress) -> Iterator[Rows]:
    from .parity.reference import Reference

    model = Reference(checkpoint)
    for group in _groups(passages):
        for hidden in model.hidden_states([passage.ids for passage in group], progress=progress):
            yield partial(_rows, model, hidden)


def _rows(model: Any, hidden: Any, start: int, stop: int) -> np.ndarray:
    return model.logits(hidden, start, stop).numpy()


def _groups(passages: Sequence[Passage]) -> Iterator[list[Passage]]:
    group: list[Passage] = []
    for passage in passages:
        if group and sum(len(p.ids) for p in group) + len(passage.ids) > _TOKENS_AT_ONCE:
            yield group
            group = []
        group.append(passage)
    yield group
