"""A package held against another package: where there is no checkpoint, and no torch, as on a machine that only runs.

The reference runs on the CPU provider. It is the package itself, which shows whether another provider computes it
right, or a package in unquantized float32 of the same model (`cpu-fp32`), whose logits are the checkpoint's.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ...configs import PackageError, Target, Thresholds, UsageError
from ...configs.progress import Progress, silent
from ...runtime.engines.session import LogitsSession
from ...runtime.package import Package, open_package
from ...runtime.providers.graph_file import sliding_window
from ...runtime.providers.names import canonical
from ...runtime.text.template import ChatTemplate, read_template
from ...runtime.text.tokenizer import Tokenizer
from . import corpus
from .compare import (
    PackageRows,
    Rows,
    compare_passage,
    counted,
    open_logits,
    package_logits,
    same_vocabulary,
    text_counter,
)
from .corpus import Lengths, cut_prompt, plan_passages
from .greedy import answer_all, judge
from .metrics import Comparison
from .result import Verification, greedy_row, metric_rows
from .self_test import drift_of
from .verify import CONVERSATIONS, STEPS, passages_on, versions

_CPU = "cpu"


def verify_by_package(
    package: Path,
    reference: Path,
    *,
    target: Target | None = None,
    provider: str = "auto",
    steps: int = STEPS,
    progress: Progress = silent,
) -> Verification:
    """Measure how close a package on a provider is to a package on the CPU provider, on the project's own text.

    Against itself it is judged by what a right kernel may move it (the self-test's limits), against another by the
    target's thresholds. How the package reads text is not compared, and nothing is written.

    Args:
        package: the package's folder.
        reference: that of the package to compare with; the same, or one in unquantized float32.
        target: whose thresholds to use against another package; by default those of the manifest's target.
        provider: where the package runs: `cpu`, `cuda`, `dml`, or `auto` for what it was made for, if that runs here.
        steps: greedy tokens of each conversation.
        progress: called with what is being done.

    Raises:
        UsageError: the reference cannot be one, or the package would be compared with itself on the same provider.
        PackageError: a package is damaged or fails, or the two are of different models.
        ProviderError: the provider cannot run here.

    """
    started = time.perf_counter()
    opened, other = open_package(package), open_package(reference)
    same_vocabulary(opened, other.contract.vocab_size, str(other.folder))
    itself = same_weights(opened, other)
    if not itself:
        check_exact(other)
    judge_by = target or (opened.manifest.target if opened.manifest else None)
    graph = opened.folder / opened.contract.filename
    progress("loading the package")
    session = open_logits(opened, provider)
    if itself and canonical(session.provider) == _CPU:
        raise UsageError(
            f"{opened.name} would be compared with itself on the CPU; name another provider with --provider, or the "
            "checkpoint, or a cpu-fp32 package of it, with --reference"
        )
    progress("loading the reference")
    wanted = open_logits(other, _CPU)
    tokenizer = Tokenizer(opened.folder)
    lengths = Lengths(min(opened.context_length, other.context_length), sliding_window(graph), opened.longrope_switch)
    planned, skipped = plan_passages(lengths, *_ids(tokenizer))
    passages, left_out = passages_on(session.provider, graph, planned, session.longrope)
    comparison = Comparison()
    counter = text_counter(progress, "text", [passage for passage, _ in passages])
    for passage, whole in passages:
        pieces = counted(package_logits(session, passage), counter)
        compare_passage(comparison, pieces, passage, PackageRows(wanted, whole))
    answers = answer_all(session, _prompts(opened, tokenizer, lengths, steps), steps, progress)
    progress("reading the answers")
    agreement = judge(answers, [_rows(wanted, answer.sequence) for answer in answers], tokenizer.token_text)
    if itself:
        drift = drift_of(graph)
        thresholds = Thresholds(mean_kl=drift.mean, p99_kl=drift.worst)
    else:
        thresholds = judge_by.thresholds if judge_by else Thresholds()
    metrics = comparison.result()
    return Verification(
        rows=(*metric_rows(metrics, thresholds), greedy_row(agreement, thresholds)),
        target=judge_by.name if judge_by else None,
        provider=session.provider,
        reference=f"{other.name} on {wanted.provider}",
        metrics=metrics,
        passages=tuple(f"{len(passage.ids)} tokens: {passage.purpose}" for passage, _ in passages),
        skipped=(*skipped, *left_out, "token ids, chat template, end tokens: not compared, the reference is a package"),
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - started, 1),
        nodes=session.placement.nodes if session.placement else None,
    )


def same_weights(package: Package, other: Package) -> bool:
    """Return whether two packages are one, or copies: by their folders, or the sums of their graphs and weights."""
    if package.folder.samefile(other.folder):
        return True
    sums = [
        {name: entry.sha256 for name, entry in one.manifest.files.items() if name.startswith(one.contract.filename)}
        for one in (package, other)
        if one.manifest
    ]
    return len(sums) == 2 and bool(sums[0]) and sums[0] == sums[1]


def check_exact(reference: Package) -> None:
    """Refuse a package that is no reference for others: one that is quantized, or in float16, or does not say.

    Raises:
        UsageError: it is such a one.

    """
    target = reference.manifest.target if reference.manifest else None
    if target is None or target.quantization is not None or target.io_dtype != "float32":
        raise UsageError(
            f"{reference.name} is no reference for another package, since it is not known to be unquantized float32; "
            "name the package itself, a cpu-fp32 package or the checkpoint; to compare any two: phi3-onnx evaluate "
            "PACKAGE --reference PACKAGE"
        )


def _ids(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return the token ids of the text, and what the tokenizer puts before every text."""
    text, prefix = tokenizer.encode(corpus.text(), special=False), tokenizer.encode("", special=True)
    return np.array(text, dtype=np.int64), np.array(prefix, dtype=np.int64)


def _prompts(package: Package, tokenizer: Tokenizer, lengths: Lengths, steps: int) -> list[np.ndarray]:
    template = read_template(package.folder, tokenizer.config, tokenizer.special_tokens)
    chats = corpus.chats()[:CONVERSATIONS]
    return [cut_prompt(_prompt(chat, template, tokenizer), lengths, steps) for chat in chats]


def _prompt(chat: corpus.Chat, template: ChatTemplate | None, tokenizer: Tokenizer) -> Sequence[int]:
    if template is not None:
        try:
            return tokenizer.encode(template.render(chat), special=False)
        except (UsageError, PackageError):  # it may have no place for a system message
            pass
    return tokenizer.encode(chat[-1]["content"])


def _rows(session: LogitsSession, ids: np.ndarray) -> Rows:
    """Return what gives the logits of a sequence, which is short enough for all of them at once."""
    logits = np.concatenate([rows for _, rows in session.logits(ids)])
    return lambda start, stop: logits[start:stop]
