"""The validation matrix: every target of a checkpoint on every provider, and packages against each other.

The reference runs the text once and all answers once, however many packages there are; each package is loaded once for
a provider.
"""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ...configs import (
    EngineError,
    Manifest,
    OutputError,
    PackageError,
    Phi3OnnxError,
    ProviderError,
    Target,
    read_manifest,
    same_package,
    store_folder,
)
from ...configs.manifest import MANIFEST_NAME, check_files
from ...configs.progress import Progress, labelled, silent
from ...export.sources.checkpoint import Checkpoint
from ...runtime import load
from ...runtime.providers.hardware import default_threads
from ...runtime.providers.names import ort_name
from ..bench import Speed, measure_speed
from ..parity.attention import compare_attention
from ..parity.finding import Finding
from ..parity.result import Row, record
from ..parity.shared_reference import SharedReference
from ..parity.stored import StoredWeights
from ..parity.verify import TestMaterial, VerificationRun, prepare, versions
from ..parity.weights import compare_weights
from .cells import Cell, Matrix, Outcome, PackageReport, package_failure
from .cross_check import Sample, cross_checks
from .plan import MatrixPlan, unavailable

_SAMPLE = 256
"""Positions of the text on which packages are held against each other."""
_PROMPT, _DECODED, _REPEAT = 256, 32, 3
"""Tokens whose time is taken, and how often."""


def run_matrix(checkpoint: Checkpoint, plan: MatrixPlan, *, progress: Progress = silent) -> Matrix:
    """Export what is missing, verify every package on every provider, and hold packages against each other.

    What goes wrong with a package or a provider is that cell's outcome; only the checkpoint itself can raise.

    Args:
        checkpoint: the model.
        plan: what to put into the matrix.
        progress: called with what is being done, with which package.

    Raises:
        SourceError: the checkpoint cannot be read, or transformers cannot load its tokenizer.

    """
    started = time.perf_counter()
    material = prepare(checkpoint, plan.steps, progress)
    packages = tuple(_package(checkpoint, target, plan, progress) for target in plan.targets)
    reference = SharedReference(checkpoint)
    if any(package.folder for package in packages):
        reference.run(material.sequences, progress=progress)
    runs = [
        _try(package, provider, material, reference, plan, progress)
        for package in packages
        for provider in plan.providers
    ]
    reference.run([ids for run in runs if run.measured for ids in run.measured.sequences], progress=progress)
    cells = tuple(_cell(run, reference) for run in runs)
    _record(packages, runs, cells)
    return Matrix(
        source=str(checkpoint.source),
        revision=checkpoint.revision,
        adapter=checkpoint.adapter,
        model=checkpoint.model,
        machine=f"{platform.system()} {platform.machine()}, {default_threads()} threads",
        packages=packages,
        cells=cells,
        cross_checks=tuple(cross_checks([run.sample for run in runs if run.sample is not None])),
        required=plan.required,
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - started, 1),
    )


def _package(checkpoint: Checkpoint, target: Target, plan: MatrixPlan, progress: Progress) -> PackageReport:
    folder = plan.output / target.name if plan.output else store_folder(checkpoint.model, target.name)
    exported = False
    try:
        if plan.force or not (folder / MANIFEST_NAME).is_file():
            _export(checkpoint, target, folder, plan.force, labelled(progress, target.name))
            exported = True
        manifest = read_manifest(folder)
        _check_origin(folder, manifest, checkpoint, target)
        if not exported:
            progress(f"{target.name}: comparing sha256 sums")
            check_files(folder, manifest, hashes=True)
    except Phi3OnnxError as error:
        return PackageReport(target, None, exported, 0, (), str(error))
    except Exception as error:  # a fault of ours in one target's export must not hide what the others show
        return PackageReport(target, None, exported, 0, (), f"{type(error).__name__}: {error}")
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    try:
        findings = {
            "attention": compare_attention(folder, checkpoint.config),
            "weights": compare_weights(
                StoredWeights(folder, manifest), manifest, checkpoint, progress=labelled(progress, target.name)
            ),
        }
    except PackageError as error:
        return PackageReport(target, folder, exported, size, (), str(error))
    rows = tuple(Row(name, finding.share, 1.0, "at least", _described(finding)) for name, finding in findings.items())
    return PackageReport(target, folder, exported, size, rows)


def _export(checkpoint: Checkpoint, target: Target, folder: Path, force: bool, progress: Progress) -> None:
    from ...export import plan_export, run_export

    adapter = str(checkpoint.adapter) if checkpoint.adapter else None
    plan = plan_export(checkpoint.source, target, folder, revision=checkpoint.revision, adapter=adapter, force=force)
    run_export(plan, progress=progress)


def _check_origin(folder: Path, manifest: Manifest, checkpoint: Checkpoint, target: Target) -> None:
    found, wanted = (manifest.source, manifest.revision), (str(checkpoint.source), checkpoint.revision)
    same = found == wanted or _same_path(manifest.source, str(checkpoint.source))
    adapters = [entry.sums if entry else None for entry in (manifest.adapter, checkpoint.adapter)]
    as_asked = same_package(manifest.target, target)
    if as_asked and same and adapters[0] == adapters[1]:
        return
    settings = " with other settings" if manifest.target.name == target.name and same and not as_asked else ""
    raise OutputError(
        f"{folder} is a {manifest.target.name} package of {manifest.origin}{settings}; "
        "replace it with --force, or name another folder with -o"
    )


def _same_path(first: str, second: str) -> bool:
    one, other = Path(first), Path(second)
    return one.exists() and other.exists() and one.samefile(other)


def _described(finding: Finding) -> str:
    return "; ".join(finding.differences[:3]) if finding.differences else "; ".join(finding.notes)


@dataclass(frozen=True)
class _Run:
    """One package on one provider, before the reference has read its answers."""

    package: PackageReport
    provider: str
    outcome: Outcome | None
    """None: to be judged."""
    reason: str | None = None
    measured: VerificationRun | None = None
    sample: Sample | None = None
    speed: Speed | None = None
    speed_note: str | None = None
    problem: str | None = None
    """Why the runtime could not run what plain ONNX Runtime could."""
    seconds: float = 0.0


def _try(
    package: PackageReport,
    provider: str,
    material: TestMaterial,
    reference: SharedReference,
    plan: MatrixPlan,
    progress: Progress,
) -> _Run:
    target = package.made_as
    outcome: Outcome = "fail" if provider in plan.required else "not run"
    if package.folder is None:
        # Where the provider is at fault as well, the package's own error still has to be fixed first.
        return _Run(package, provider, "fail", f"no package: {package.error}")
    if problem := unavailable(provider):
        if target.provider != provider and outcome == "not run":  # the remedy belongs where it is needed
            problem = f"made for {target.provider}, and {provider} cannot run here"
        return _Run(package, provider, outcome, problem)
    label = f"{target.name} on {provider}"
    started = time.perf_counter()
    try:
        measured = VerificationRun(package.folder, material, target, provider, labelled(progress, label))
        measured.compare(reference)
        sample = Sample(target, provider, measured.provider, _logits(measured, material.passages[-1].ids))
        measured.close()
        measured.compare_decoding(reference)
    except (EngineError, PackageError, ProviderError) as error:
        # Another provider than the one a package is for need not be able to run it, except the CPU's.
        meant = provider in (target.provider, "cpu")
        return _Run(package, provider, "fail" if meant else outcome, str(error))
    run = _Run(package, provider, None, None, measured, sample, seconds=time.perf_counter() - started)
    return _timed(run, progress, label) if plan.speed else replace(run, speed_note="not asked for")


def _timed(run: _Run, progress: Progress, label: str) -> _Run:
    assert run.package.folder is not None
    progress(f"{label}: speed")
    try:
        with load(run.package.folder, provider=run.provider) as model:
            prompt = max(1, min(_PROMPT, model.context_length - _DECODED))
            return replace(run, speed=measure_speed(model, prompt, _DECODED, _REPEAT))
    except Phi3OnnxError as error:
        # A package that the runtime cannot run where it belongs is of no use, however good its logits are.
        own = run.provider == run.package.made_as.provider
        return replace(run, speed_note=str(error), problem=str(error) if own else None)


def _logits(measured: VerificationRun, ids: np.ndarray) -> np.ndarray:
    ids = ids[:_SAMPLE]
    return np.concatenate([rows for _, rows in measured.session.logits(ids, chunk=len(ids))])


def _cell(run: _Run, reference: SharedReference) -> Cell:
    target, package = run.package.target, run.package
    if run.outcome is not None or run.measured is None:
        return Cell(target, run.provider, run.outcome or "fail", run.reason)
    verification = run.measured.conclude(reference, run.seconds)
    problems = [f"{row.name} {row.value:.4g}, must be {row.bound} {row.threshold:g}" for row in verification.failures]
    if run.problem is not None:
        problems.append(run.problem)
    if (failure := package_failure(package)) is not None:
        problems.append(failure)
    return Cell(
        target,
        run.provider,
        "fail" if problems else "pass",
        "; ".join(problems) or _where(run.measured.provider, run.provider, package.made_as),
        verification,
        run.speed,
        run.speed_note,
    )


def _where(ran_on: str, provider: str, target: Target) -> str | None:
    """Say so where a graph did not run on the provider that it is for."""
    return f"on {ran_on}" if target.provider != provider or ran_on != ort_name(provider) else None


def _record(packages: Sequence[PackageReport], runs: Sequence[_Run], cells: Sequence[Cell]) -> None:
    """Write into each package's manifest how it fared on its own provider, or else on the CPU."""
    for package in packages:
        done = [cell for cell in cells if cell.target == package.target and cell.verification is not None]
        own = package.made_as.provider
        best = next((cell for cell in done if cell.provider == own), done[0] if done else None)
        if package.folder is not None and best is not None and best.verification is not None:
            record(package.folder, best.verification)
