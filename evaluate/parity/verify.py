"""Proof that a package still is its model: tokens, logits over text and greedy answers, against float32 PyTorch.

The reference runs all text in one pass with one layer's weights in memory at a time, the package loaded next to it.
For Phi-3-mini that is 2,950 tokens: 7.7 core-seconds a layer (AVX-512, measured on 3 of its 32 layers), 250 in all, and
1.5 GiB. A LongRoPE model is also run beyond 4,096 tokens, and takes a bit more than twice as long.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ...configs import PackageError, Target, Thresholds
from ...configs.progress import Progress, silent
from ...export.sources.checkpoint import Checkpoint
from ...runtime.engines.session import LogitsSession, open_session
from ...runtime.package import Package, open_package
from ...runtime.proof.self_test import SelfTest
from ...runtime.providers.known_faults import unseen_window
from ...runtime.providers.names import canonical
from ...runtime.providers.wheels import installed_wheels
from . import corpus
from .compare import compare_passage, counted, package_logits, text_counter
from .corpus import Lengths, Passage, cut_prompt, plan_passages, within_window
from .decode import SINGLY, Decoding, compare_decoding, has_decoding, why_not
from .finding import Finding
from .greedy import answer_all, judge
from .metrics import Comparison, Metrics
from .result import Row, Verification, decoding_rows, deserves_self_test, greedy_row, metric_rows, record
from .self_test import choose_texts, drift_of, make_self_test
from .shared_reference import SharedReference
from .tokens import (
    compare_chat_template,
    compare_client_tokens,
    compare_end_tokens,
    compare_token_ids,
    hugging_face_tokenizer,
    render_reference,
)

STEPS = 64
"""Greedy tokens of each conversation."""
CONVERSATIONS = 5
"""Conversations that are continued greedily."""


@dataclass(frozen=True)
class TestMaterial:
    """What every package of a checkpoint is measured on."""

    checkpoint: Checkpoint
    tokenizer: Any
    """transformers' own."""
    passages: tuple[Passage, ...]
    skipped: tuple[str, ...]
    """What the passages leave out."""
    prompts: tuple[np.ndarray, ...]
    """Token ids of the conversations that are continued greedily."""
    steps: int
    """Greedy tokens of each conversation."""
    texts: tuple[np.ndarray, ...]
    """Token ids of the self-test's texts."""
    rows: tuple[Row, ...] = ()
    """What was found about the reference itself."""

    @property
    def sequences(self) -> list[np.ndarray]:
        """What the reference has to run whatever a package answers."""
        return [*(passage.ids for passage in self.passages), *self.texts]


def prepare(checkpoint: Checkpoint, steps: int = STEPS, progress: Progress = silent) -> TestMaterial:
    """Choose what packages of a checkpoint are measured on, and check the reference that measures them.

    Raises:
        SourceError: the checkpoint cannot be read, or transformers cannot load the checkpoint's tokenizer.

    """
    tokenizer = hugging_face_tokenizer(checkpoint)
    passages, skipped = _passages(checkpoint, tokenizer)
    prompts = _prompts(checkpoint, tokenizer, steps)
    from .reference_check import check_reference  # imports torch

    progress("comparing the reference with transformers")
    found = check_reference(checkpoint, [passage.ids for passage in passages])
    rows = (found,) if isinstance(found, Row) else ()
    skipped += [found] if isinstance(found, str) else []
    texts = choose_texts(passages[-1].ids, prompts)
    return TestMaterial(checkpoint, tokenizer, tuple(passages), tuple(skipped), tuple(prompts), steps, texts, rows)


class VerificationRun:
    """One package on one provider, taken through its verification step by step.

    The steps are apart so that the reference can run the answers of many packages in one pass.
    """

    def __init__(
        self,
        package: Path,
        material: TestMaterial,
        target: Target | None,
        provider: str,
        progress: Progress = silent,
        *,
        strict_clients: bool = False,
    ) -> None:
        """Load the package, compare how it reads text, and have it answer the conversations; see `verify`."""
        self._material = material
        self._progress = progress
        self._package = opened = open_package(package)
        self._target = target or _manifest_target(opened)
        self._graph = opened.folder / opened.contract.filename
        progress("comparing token ids")
        self._reading = _reading_rows(opened, material.checkpoint, material.tokenizer, strict_clients)
        progress("loading the package")
        self._session: LogitsSession | None = _open(opened, material.checkpoint, provider)
        self.provider = self._session.provider
        """The execution provider that the package runs on, by ONNX Runtime's name."""
        self.placement = self._session.placement
        """Where the graph's nodes landed; None on the CPU."""
        self._passages, self._skipped = passages_on(
            self.provider, self._graph, material.passages, self._session.longrope
        )
        self.answers = answer_all(self._session, material.prompts, material.steps, progress)
        self._metrics: Metrics | None = None
        decodes = has_decoding(opened)
        self._undecoded = why_not(self.provider) if decodes else None
        self._decodes = decodes and not self._undecoded
        self._last = list[np.ndarray]()
        self._decoding: Decoding | None = None
        self._self_test: SelfTest | None = None

    @property
    def sequences(self) -> list[np.ndarray]:
        """What the reference has to run before `conclude`."""
        return [answer.sequence for answer in self.answers]

    @property
    def session(self) -> LogitsSession:
        """The loaded package, until `close`."""
        assert self._session is not None, "the package was closed"
        return self._session

    def compare(self, reference: SharedReference) -> None:
        """Hold the package's logits over the text against the reference's, which has run `TestMaterial.sequences`."""
        comparison = Comparison()
        counter = text_counter(self._progress, "package: text", [passage for passage, _ in self._passages])
        for passage, whole in self._passages:
            pieces, keep = package_logits(self.session, passage), SINGLY if self._decodes else 0
            wanted = reference.rows(whole.ids)
            self._last.append(compare_passage(comparison, counted(pieces, counter), passage, wanted, keep=keep))
        self._progress("package: self-test")
        self._metrics = comparison.result()
        self._self_test = make_self_test(self.session, self._material.texts, reference.rows, drift_of(self._graph))

    def close(self) -> None:
        """Give the package's memory back; what comes after needs it no more."""
        self._session = None

    def compare_decoding(self, reference: SharedReference) -> None:
        """Hold the package's second graph against the reference, too, where it has one that runs here.

        It is loaded for this: after `compare`, and best after `close`.

        Raises:
            PackageError: it cannot be loaded.
            EngineError: a run fails.

        """
        if self._decodes:
            passages = self._material.passages
            rows = [reference.rows(passage.ids) for passage in passages]
            self._decoding = compare_decoding(self._package, passages, rows, self._last, progress=self._progress)
            self._last.clear()

    def conclude(self, reference: SharedReference, seconds: float) -> Verification:
        """Judge the answers by the reference, which has run `sequences`, and return all that was found."""
        assert self._metrics is not None, "compare comes first"
        material, checkpoint = self._material, self._material.checkpoint
        thresholds = self._target.thresholds if self._target else Thresholds()
        rows = [reference.rows(ids) for ids in self.sequences]
        agreement = judge(self.answers, rows, lambda token: material.tokenizer.decode([token]))
        verification = Verification(
            rows=(
                *self._reading,
                *material.rows,
                *metric_rows(self._metrics, thresholds),
                greedy_row(agreement, thresholds),
                *(decoding_rows(self._decoding, thresholds) if self._decoding else ()),
            ),
            target=self._target.name if self._target else None,
            provider=self.provider,
            reference=checkpoint.origin,
            metrics=self._metrics,
            passages=tuple(f"{len(passage.ids)} tokens: {passage.purpose}" for passage, _ in self._passages),
            skipped=(*material.skipped, *self._skipped, *([self._undecoded] if self._undecoded else [])),
            versions=versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 1),
            nodes=self.placement.nodes if self.placement else None,
            decoding=self._decoding,
        )
        return replace(verification, self_test=self._self_test) if deserves_self_test(verification) else verification


def verify(
    package: Path,
    checkpoint: Checkpoint,
    *,
    target: Target | None = None,
    provider: str = "cpu",
    steps: int = STEPS,
    strict_clients: bool = False,
    progress: Progress = silent,
) -> Verification:
    """Measure how close a package is to the checkpoint it was made from.

    Args:
        package: the package's folder.
        checkpoint: its model.
        target: whose thresholds to use; by default those of the manifest's target. A package without a
            manifest is measured and judged by its tokens alone.
        provider: where the package runs: `cpu`, `cuda`, `dml`, or `auto` for what it was made for, if that runs here.
        steps: greedy tokens of each conversation.
        strict_clients: judge other clients' tokenizers too, which this runtime does not use.
        progress: called with what is being done.

    Raises:
        PackageError: the package is damaged, its graph fails, or it is another model's.
        ProviderError: the provider cannot run here.
        SourceError: the checkpoint cannot be read, or transformers cannot load its tokenizer.

    """
    started = time.perf_counter()
    material = prepare(checkpoint, steps, progress)
    run = VerificationRun(package, material, target, provider, progress, strict_clients=strict_clients)
    reference = SharedReference(checkpoint)
    reference.run([*material.sequences, *run.sequences], progress=progress)
    run.compare(reference)
    run.close()  # before the second graph, which has the same weights
    run.compare_decoding(reference)
    return run.conclude(reference, time.perf_counter() - started)


def checked(package: Path, checkpoint: Checkpoint, target: Target, *, progress: Progress = silent) -> None:
    """Verify a package on the provider it was made for, or else the CPU, and record the figures in its manifest.

    Raises:
        VerificationError: a row is out of its threshold; the message has every such row.

    """
    verification = verify(package, checkpoint, target=target, provider="auto", progress=progress)
    record(package, verification)
    verification.check(f"{checkpoint.model}/{target.name}")


def versions() -> dict[str, str]:
    """Return the versions of what packages and references run on, as far as they are installed."""
    found: dict[str, str] = {}
    for name in ("phi3-onnx", "torch", "transformers", "tokenizers"):
        with suppress(PackageNotFoundError):  # torch and transformers, where no checkpoint is run
            found[name] = version(name)
    return {**found, **{wheel.name: wheel.version for wheel in installed_wheels()}}


def passages_on(
    provider: str, graph: Path, passages: Sequence[Passage], switch: int | None
) -> tuple[list[tuple[Passage, Passage]], list[str]]:
    """Return what of each passage a provider computes as the model does, beside the whole; and what is left out.

    Args:
        provider: by ONNX Runtime's name.
        graph: the ONNX file.
        passages: what the package would run.
        switch: the most tokens for which LongRoPE takes its short factors; None or 0 without it.

    """
    window = unseen_window(graph, canonical(provider))
    if window is None or window >= max(len(passage.ids) for passage in passages):
        return [(passage, passage) for passage in passages], []
    kept = within_window(passages, window, switch)
    return kept, [f"beyond {window} tokens: not compared, {provider} computes no sliding window"]


def _manifest_target(package: Package) -> Target | None:
    return package.manifest.target if package.manifest else None


def _open(package: Package, checkpoint: Checkpoint, provider: str) -> LogitsSession:
    expected, found = checkpoint.config.vocab_size, package.contract.vocab_size
    if found != expected:
        raise PackageError(
            f"{package.folder} has {found} tokens, {checkpoint.source} {expected}: it was made from another model"
        )
    rope = checkpoint.config.longrope
    switch = rope.original_max_position if rope else 0
    return open_session(package.folder, provider, made_for=package.made_for, longrope=switch)[0]


def _reading_rows(package: Package, checkpoint: Checkpoint, tokenizer: Any, strict_clients: bool) -> list[Row]:
    chats = corpus.chats()
    texts = list(corpus.snippets())
    if tokenizer.chat_template is not None:
        texts += [text for chat in chats if (text := _try_render(tokenizer, chat)) is not None]
    findings = {
        "token_ids": compare_token_ids(tokenizer, package, texts),
        "chat_template": compare_chat_template(tokenizer, package, chats),
        "end_tokens": compare_end_tokens(checkpoint, package),
    }
    rows = [Row(name, finding.share, 1.0, "at least", _described(finding)) for name, finding in findings.items()]
    client = compare_client_tokens(tokenizer, package, texts)
    if client.compared:
        threshold = 1.0 if strict_clients else None
        rows.append(Row("genai_token_ids", client.share, threshold, "at least", _described(client)))
    return rows


def _described(finding: Finding) -> str:
    if not finding.differences:
        return "; ".join(finding.notes)
    return f"{len(finding.differences)} of {finding.compared} differ, first: {finding.differences[0]}"


def _try_render(tokenizer: Any, chat: corpus.Chat) -> str | None:
    try:
        return render_reference(tokenizer, chat)
    except Exception:  # templates raise what they like, such as for a system message they have no place for
        return None


def _passages(checkpoint: Checkpoint, tokenizer: Any) -> tuple[list[Passage], list[str]]:
    bare = tokenizer(corpus.text(), add_special_tokens=False).input_ids
    full = tokenizer(corpus.text()).input_ids
    prefix = full[: len(full) - len(bare)] if full[-len(bare) :] == bare else []
    return plan_passages(Lengths.of(checkpoint.config), np.array(bare), np.array(prefix, dtype=np.int64))


def _prompts(checkpoint: Checkpoint, tokenizer: Any, steps: int) -> list[np.ndarray]:
    lengths = Lengths.of(checkpoint.config)
    prompts: list[np.ndarray] = []
    for chat in corpus.chats()[:CONVERSATIONS]:
        text = _try_render(tokenizer, chat) if tokenizer.chat_template is not None else None
        if text is not None:
            ids = tokenizer(text, add_special_tokens=False).input_ids
        else:
            ids = tokenizer(chat[-1]["content"]).input_ids
        prompts.append(cut_prompt(ids, lengths, steps))
    return prompts
