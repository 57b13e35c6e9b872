"""What a verification found: rows with thresholds, for the screen, the manifest and an exit code."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...configs import OutputError, Thresholds, VerificationError, read_manifest
from ...configs.files import replacing
from ...configs.manifest import MANIFEST_NAME, SELF_TEST_NAME, FileEntry, file_sha256
from ...runtime.proof.self_test import SelfTest
from .decode import Decoding
from .greedy import Agreement
from .metrics import Metrics

EXACT = ("token_ids", "chat_template", "end_tokens")
"""Rows that are shares of comparisons which must all come out equal."""


CLIENTS = ("genai_token_ids",)
"""Rows of other clients: they are measured, and judged only where that is asked for (`--strict-clients`)."""


@dataclass(frozen=True)
class Row:
    """One thing that was measured."""

    name: str
    """A field of `Thresholds` (with `decode_` before it, of the second graph), one of `EXACT`, or a word of its own."""
    value: float
    threshold: float | None
    """None: measured and reported, judged by nothing."""
    bound: Literal["at most", "at least"]
    detail: str
    """What was compared, and where it differs first."""

    @property
    def passed(self) -> bool | None:
        """Whether the value keeps its threshold (NaN keeps none); None without one."""
        if self.threshold is None:
            return None
        return self.value <= self.threshold if self.bound == "at most" else self.value >= self.threshold

    @property
    def warning(self) -> bool:
        """Whether another client differs, which is nobody's failure here."""
        return self.name in CLIENTS and self.passed is None and self.value < 1


def metric_rows(metrics: Metrics, thresholds: Thresholds) -> list[Row]:
    """Return the rows of figures over text."""
    places = f"{metrics.positions} positions"
    perplexities = " / ".join(f"{p.value:.4g} ± {p.standard_error:.2g}" for p in (metrics.package, metrics.reference))
    return [
        Row("max_abs_diff", metrics.max_abs_diff, thresholds.max_abs_diff, "at most", f"logits, {places}"),
        Row("mean_kl", metrics.mean_kl, thresholds.mean_kl, "at most", f"nats; median {metrics.median_kl:.3g}"),
        Row("p99_kl", metrics.p99_kl, thresholds.p99_kl, "at most", "nats"),
        Row("top1_agreement", metrics.top1_agreement, thresholds.top1_agreement, "at least", places),
        Row("perplexity_ratio", metrics.perplexity_ratio, thresholds.perplexity_ratio, "at most", perplexities),
    ]


def decoding_rows(decoding: Decoding, thresholds: Thresholds) -> list[Row]:
    """Return the rows of a package's second graph."""
    metrics, beside = decoding.metrics, decoding.beside
    places = f"{metrics.positions} positions of decode.onnx"
    between = f"nats; from model.onnx to decode.onnx, {beside.positions} tokens that ran one at a time"
    return [
        Row("decode_mean_kl", metrics.mean_kl, thresholds.mean_kl, "at most", f"nats; {places}"),
        Row("decode_top1_agreement", metrics.top1_agreement, thresholds.top1_agreement, "at least", places),
        Row("int8_cache_kl", beside.mean_kl, None, "at most", between),
    ]


def greedy_row(agreement: Agreement, thresholds: Thresholds) -> Row:
    """Return the row of greedy answers."""
    return Row("greedy_agreement", agreement.share, thresholds.greedy_agreement, "at least", str(agreement))


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    rows: tuple[Row, ...]
    target: str | None
    """The target whose thresholds were used; None for a package that phi3-onnx did not make."""
    provider: str
    """The execution provider that the package ran on, by ONNX Runtime's name."""
    reference: str
    """The checkpoint, with its revision where it has one."""
    metrics: Metrics
    """All figures over the text."""
    passages: tuple[str, ...]
    """What the text was: a line for each passage."""
    skipped: tuple[str, ...]
    """What could not be tried."""
    versions: Mapping[str, str]
    """Package name -> version of what both sides ran on."""
    created: str
    """UTC, ISO 8601."""
    seconds: float
    """Wall time."""
    nodes: Mapping[str, int] | None = None
    """Nodes of the graph by the provider that ran them; None on the CPU, and where ONNX Runtime does not say."""
    decoding: Decoding | None = None
    """What the second graph gives; None where a package has none, or it does not run where the package was verified."""
    self_test: SelfTest | None = None
    """What is to travel with the package; None where it is too far from its reference (`deserves_self_test`)."""

    @property
    def passed(self) -> bool:
        """Whether no row is out of its threshold."""
        return not self.failures

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that are out of their thresholds."""
        return tuple(row for row in self.rows if row.passed is False)

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line for each client that reads text otherwise than Hugging Face does, and for what was not made."""
        lines = [f"another client differs: {row.name}: {row.detail}" for row in self.rows if row.warning]
        if self.passed and self.self_test is None:
            lines.append(
                f"no self-test was made: {self.metrics.mean_kl:.3g} nats from its reference, this is another model, or "
                "computed wrongly here"
            )
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values, with `passed` and each row's; figures that are not finite become None."""
        table = asdict(replace(self, self_test=None))
        del table["self_test"]
        warning = {"warning": True}
        table["rows"] = [{**asdict(row), "passed": row.passed, **(warning if row.warning else {})} for row in self.rows]
        table["metrics"] = metrics_dict(self.metrics)
        del table["decoding"]
        if self.decoding:
            table["decoding"] = {name: metrics_dict(found) for name, found in vars(self.decoding).items()}
        return finite({"passed": self.passed, **table})

    def check(self, name: str) -> None:
        """Raise if a row is out of its threshold.

        Args:
            name: what to call the package.

        Raises:
            VerificationError: the message has every such row.

        """
        if self.passed:
            return
        problems = "; ".join(_problem(row) for row in self.failures)
        raise VerificationError(f"{name} failed its verification: {problems}")


def _problem(row: Row) -> str:
    problem = f"{row.name} is {row.value:.4g}, must be {row.bound} {row.threshold:g}"
    explained = (*EXACT, *CLIENTS, "reference_error", "greedy_agreement")
    return f"{problem} ({row.detail})" if row.name in explained else problem


def metrics_dict(metrics: Metrics) -> dict[str, Any]:
    """Return metrics as JSON values, perplexities with their standard errors and ratio included."""
    table = asdict(metrics)
    for name in ("reference", "package"):
        perplexity = getattr(metrics, name)
        table[name] |= {"perplexity": perplexity.value, "standard_error": perplexity.standard_error}
    return finite({**table, "perplexity_ratio": metrics.perplexity_ratio})


def finite(value: Any) -> Any:
    """Return JSON values with None for every figure that is not finite, for which JSON has no word."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value


_STRANGE = 1.5
"""Mean KL in nats from which on a package that no threshold judges is taken for another model, or for computed wrongly.
The coarsest target (4 bits, blocks of 32, a model of 135 M parameters) has 0.4."""


def deserves_self_test(verification: Verification) -> bool:
    """Whether what ran was the model: a self-test of a wrong computation would bless it everywhere."""
    return verification.passed and verification.metrics.mean_kl < _STRANGE  # NaN is not


def record(package: Path, verification: Verification) -> None:
    """Write a verification into a package, in place of the last one: its figures into the manifest, and the self-test.

    A package of another maker, which has no manifest, gets the self-test.

    Raises:
        PackageError: the manifest is damaged.
        OutputError: the folder cannot be written to.

    """
    manifest = read_manifest(package) if (package / MANIFEST_NAME).is_file() else None
    if manifest:
        manifest = replace(manifest, verification=verification.to_dict())
    if verification.self_test is not None:
        if manifest and SELF_TEST_NAME in manifest.files:  # at no time may the manifest name another file's sum
            files = {name: entry for name, entry in manifest.files.items() if name != SELF_TEST_NAME}
            manifest = replace(manifest, files=files)
            _write(package / MANIFEST_NAME, manifest.to_json())
        path = package / SELF_TEST_NAME
        _write(path, verification.self_test.to_json())
        if manifest:
            entry = FileEntry(path.stat().st_size, file_sha256(path))
            manifest = replace(manifest, files={**manifest.files, SELF_TEST_NAME: entry})
    if manifest:
        _write(package / MANIFEST_NAME, manifest.to_json())


def _write(path: Path, text: str) -> None:
    try:
        with replacing(path) as beside:
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}", remedy="to measure only: --no-record"
        ) from error
