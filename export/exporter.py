"""Export: a checkpoint in, a package out."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from ..configs import (
    Manifest,
    OutputError,
    Target,
    TensorSummary,
    UsageError,
    VerificationError,
    WeightScheme,
    find_target,
    identified,
    store_folder,
)
from ..configs.exchange import put_in_place
from ..configs.manifest import MANIFEST_NAME, FileEntry, file_sha256
from ..configs.progress import Progress, silent
from ..configs.requirements import require_export
from ..configs.sizes import size
from .package.destination import building, check_destination
from .package.genai_config import end_tokens, genai_config
from .sources.checkpoint import Checkpoint
from .sources.open import open_checkpoint
from .weights.blocks import fit_blocks
from .weights.calibration_data import (
    Calibration,
    CalibrationOptions,
    calibrated_layers,
    calibration_bytes,
    prepare_calibration,
    short_calibration,
)
from .weights.data_file import DataFile
from .weights.fill import Tally, filling, fills_by_processes, summaries, worker_processes, write_quantized
from .weights.fit_budget import fit_budget
from .weights.layout import COS_TABLE, SIN_TABLE, Layout, plan_layout
from .weights.norms import WideNorms, wide_norms
from .weights.rope import rope_tables

if TYPE_CHECKING:
    from .graph.build import Graph

DEFAULT_SOURCE = "microsoft/Phi-3-mini-4k-instruct"

Verify = Callable[[Path, Checkpoint, Target], None]
"""Compares a finished package with its checkpoint, records the figures, raises VerificationError where one fails."""

_BASE_MEMORY, _MEMORY_PER_THREAD, _MEMORY_PER_PROCESS = 600 << 20, 100 << 20, 350 << 20
"""Peak memory of an export, measured on the 3.8 B model: Python, torch and the graph; a thread's rows and buffers, or
those of a process and its own torch."""


@dataclass(frozen=True)
class ExportPlan:
    """What an export will do, known before a weight is read."""

    checkpoint: Checkpoint
    target: Target
    """What was asked for, which the manifest holds."""
    fitted: Target
    """The target with blocks that divide K of this model's matrices, where its provider wants that."""
    output: Path
    layout: Layout
    package_bytes: int
    memory_bytes: int
    """Peak memory the export is expected to need."""
    calibration: Calibration | None = None
    """For calibrated methods and budgets: the token sequences."""
    smaller_blocks: Mapping[str, WeightScheme] = field(default_factory=dict)
    """Matrices whose block had to be smaller than the target's, to divide K: name or pattern -> scheme."""

    @cached_property
    def graph(self) -> "Graph":
        """The graph, traced when it is first asked for: an export does that while the weights are written.

        Raises:
            LintError: the target's provider would not run it as it is.

        """
        from .graph.build import build_graph
        from .lint.check import check_graph

        graph = build_graph(self.checkpoint.config, self.fitted)
        check_graph(graph.model, self.target.provider)
        return graph

    @property
    def calibrated(self) -> bool:
        """Whether the decoder's matrices are quantized by a method that looks at data."""
        return self.target.quantization is not None and self.target.quantization.method != "rtn"


class ExportOptions(TypedDict, total=False):
    """The options of `plan_export` and `export`."""

    revision: str | None
    """Commit, tag or branch of a hub checkpoint."""
    token: str | None
    """The hub's access token; None takes `HF_TOKEN`."""
    adapter: str | Path | None
    """A PEFT folder (LoRA, DoRA) or hub id that is merged into the weights while they are read."""
    force: bool
    """Replace the package that is already there."""
    calibration: CalibrationOptions | None
    """Text and amount for calibrated targets; None takes the project's own text."""
    budget: str | None
    """Bits per weight (`6.0bpw`) or size (`105MB`) within which each matrix gets its bits by what it costs."""


def plan_export(
    source: str | Path = DEFAULT_SOURCE,
    target: str | Target = "cpu-int4-rtn",
    output: str | Path | None = None,
    *,
    progress: Progress = silent,
    **options: Unpack[ExportOptions],
) -> ExportPlan:
    """Check everything that can be checked beforehand.

    Args:
        source: A Hugging Face folder, a hub id, or a `.gguf` file.
        target: A target's name or alias (see `phi3-onnx targets`), or a Target of your own. One that was made by
            changing a published target gets a name of its own, such as `cpu-int4-rtn.gptq-block-128`.
        output: Folder to make; None puts it into the store under `<model>/<target>`.
        progress: Called with "measuring" and its layers, for a budget.
        options: `ExportOptions`.

    Raises:
        Phi3OnnxError: the source, the target or the output folder cannot be used, or a package of the `export` extra
            is missing or of a version that cannot work; the message says what to do.

    """
    require_export()
    if unknown := options.keys() - ExportOptions.__annotations__.keys():
        raise TypeError(f"no option {min(unknown)!r}; there are {', '.join(ExportOptions.__annotations__)}")
    force, budget = options.get("force", False), options.get("budget")
    chosen = find_target(target) if isinstance(target, str) else identified(target)
    named = None if output is None else check_destination(Path(output), 0, force=force)  # before a long download
    checkpoint = open_checkpoint(
        source, revision=options.get("revision"), token=options.get("token"), adapter=options.get("adapter")
    )
    if named is None and budget is None:  # a budget's target has its name when it was fitted
        check_destination(store_folder(checkpoint.model, chosen.name), 0, force=force)
    prepared, quantization = None, chosen.quantization
    if budget is not None and quantization is None:
        raise UsageError(f"target {chosen.name} is not quantized, so it has no budget; name a method with --quant")
    if quantization is not None and (budget is not None or quantization.method != "rtn"):
        prepared = prepare_calibration(checkpoint, options.get("calibration") or CalibrationOptions(), quantization)
        if budget is not None:
            chosen = fit_budget(checkpoint, chosen, budget, prepared, progress)
    fitted, smaller = fit_blocks(checkpoint.config, chosen)
    layout = plan_layout(checkpoint.config, fitted)
    assets = sum(len(content) for content in checkpoint.assets().values())
    package_bytes = layout.num_bytes + assets + (1 << 20)
    folder = check_destination(named or store_folder(checkpoint.model, chosen.name), package_bytes, force=force)
    memory = _BASE_MEMORY
    if fills_by_processes(checkpoint.config):
        memory += worker_processes() * _MEMORY_PER_PROCESS
    else:
        memory += (os.cpu_count() or 1) * _MEMORY_PER_THREAD
    if prepared is not None:
        memory += calibration_bytes(checkpoint.config)
    return ExportPlan(checkpoint, chosen, fitted, folder, layout, package_bytes, memory, prepared, smaller)


def export(
    source: str | Path = DEFAULT_SOURCE,
    target: str | Target = "cpu-int4-rtn",
    output: str | Path | None = None,
    *,
    verify: Verify | None = None,
    progress: Progress = silent,
    **options: Unpack[ExportOptions],
) -> Path:
    """Make a package of a checkpoint and return its folder.

    Args:
        source: A Hugging Face folder, a hub id, or a `.gguf` file.
        target: A target's name or alias (see `phi3-onnx targets`), or a Target of your own.
        output: Folder to make; None puts it into the store under `<model>/<target>`.
        verify: Called with the finished package before it gets its final name (`phi3_onnx.evaluate.checked` is one).
        progress: Called with what is being done: "writing" and its bytes, "measuring" (for a budget) and "calibrating"
            and their layers, "measuring the cache" and "hashing".
        options: `ExportOptions`.

    Raises:
        VersionError: a package of the `export` extra is of a version that cannot work.
        SourceError: the checkpoint is missing, damaged or not supported.
        OutputError: the package cannot be written there.
        LintError: the target's provider would refuse the graph, or compute it wrongly.
        VerificationError: `verify` found a difference; the package is kept beside `output` as `<output>.failed`.

    """
    return run_export(
        plan_export(source, target, output, progress=progress, **options), verify=verify, progress=progress
    )


def run_export(plan: ExportPlan, *, verify: Verify | None = None, progress: Progress = silent) -> Path:
    """Carry out a plan and return the package's folder. Raises what `export` raises."""
    with building(plan.output) as folder:
        try:
            _write(plan, folder, progress)
        except OSError as error:
            raise OutputError(_unwritten(plan, folder, error)) from error
        if verify is not None:
            try:
                verify(folder, plan.checkpoint, plan.target)
            except VerificationError as error:
                failed = plan.output.with_name(plan.output.name + ".failed")
                put_in_place(folder, failed)
                raise VerificationError(f"{error}; the package was kept as {failed}") from error
    return plan.output


def _unwritten(plan: ExportPlan, folder: Path, error: OSError) -> str:
    elsewhere = isinstance(error.filename, str) and folder not in Path(error.filename).parents
    if elsewhere and error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename}: {error.strerror or error}"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"{plan.output} cannot be written: {error.strerror or error}"
    if elsewhere:
        free = size(shutil.disk_usage(Path(error.filename).parent).free)
        return f"the disk of {error.filename} is full, {free} are left; free some space"
    needed, free = size(plan.package_bytes), size(shutil.disk_usage(folder).free)
    return f"the disk of {plan.output} is full: the package needs {needed}, {free} are left; free some space"


def _write(plan: ExportPlan, folder: Path, progress: Progress) -> None:
    import onnx_ir as ir

    from .lint.check import check_graph

    checkpoint = plan.checkpoint
    data = DataFile(folder, plan.layout)
    data.create()
    tensors, mean_squares = _fill(plan, data, progress)
    norms = wide_norms(checkpoint.config, plan.target, mean_squares)
    if norms is not None:
        plan.graph.widen_norms(norms.weights)
        check_graph(plan.graph.model, plan.target.provider)
    plan.graph.bind(plan.layout, folder)
    (folder / "model.onnx").write_bytes(ir.serde.serialize_model(plan.graph.model).SerializeToString())
    if plan.target.decodes_together and plan.target.quantization is not None:
        from .graph.decode import write_decode_graph

        progress("measuring the cache")
        write_decode_graph(folder, checkpoint.config, short_calibration(checkpoint, plan.target.quantization))
    for name, content in checkpoint.assets().items():
        (folder / name).write_bytes(content)
    generation = dict(checkpoint.generation_config)
    generation["eos_token_id"] = end_tokens(checkpoint.config, generation)
    _write_json(folder / "config.json", checkpoint.config.to_phi3())
    _write_json(folder / "generation_config.json", generation)
    _write_json(folder / "genai_config.json", genai_config(checkpoint.config, plan.target, generation))
    progress("hashing")
    manifest = _manifest(plan, folder, tensors, norms)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def _fill(plan: ExportPlan, data: DataFile, progress: Progress) -> tuple[dict[str, TensorSummary], dict[str, float]]:
    """Write every initializer, tracing the graph meanwhile.

    Returns:
        How each weight matrix was stored, and for calibrated targets the largest mean square that each norm saw.

    """
    checkpoint, target, tally = plan.checkpoint, plan.fitted, Tally(data, progress)
    names = checkpoint.config.tensor_shapes()
    alone = [name for name in names if not (plan.calibrated and name.startswith("model.layers."))]
    reports: dict[str, Mapping[str, Any]] = {}
    mean_squares: dict[str, float] = {}
    with filling(data, checkpoint, target, alone, tally) as under_way:
        _ = plan.graph
        for name, table in zip((COS_TABLE, SIN_TABLE), rope_tables(checkpoint.config), strict=True):
            tally.add({name: data.write(name, table)})
        errors = under_way.finish()
    # Not meanwhile: calibration has work for all cores, and the others' memory would come on top of its own.
    if plan.calibrated:
        assert plan.calibration is not None
        for index, layer in calibrated_layers(checkpoint, target, plan.calibration, progress):
            prefix = f"model.layers.{index}."
            for name, weight in layer.matrices.items():
                tally.add(write_quantized(data, prefix + name, weight))
            for name, norm in layer.norms.items():
                tally.add({prefix + name: data.write(prefix + name, norm)})
            reports |= {prefix + name: report for name, report in layer.reports.items()}
            # The last norm sees the last layer's output: each layer's takes the place of the one before it.
            for name, value in layer.mean_squares.items():
                mean_squares["model.norm.weight" if name == "output" else prefix + name] = value
    tally.check()
    return summaries(checkpoint.config, target, errors, reports), mean_squares


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _manifest(
    plan: ExportPlan, folder: Path, tensors: Mapping[str, TensorSummary], norms: WideNorms | None
) -> Manifest:
    checkpoint = plan.checkpoint
    files = {path.name: FileEntry(path.stat().st_size, file_sha256(path)) for path in sorted(folder.iterdir())}
    parameters = checkpoint.config.num_parameters
    return Manifest(
        target=plan.target,
        source=str(checkpoint.source),
        revision=checkpoint.revision,
        adapter=checkpoint.adapter,
        model=checkpoint.model,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions("phi3-onnx", "torch", "transformers", "onnx", "onnx-ir", "onnxscript"),
        ops=plan.graph.ops,
        num_parameters=parameters,
        bits_per_weight=round(plan.layout.weight_bytes * 8 / parameters, 3),
        tensors=tensors,
        files=files,
        calibration=plan.calibration.describe() if plan.calibration else None,
        norms=norms.describe() if norms else None,
    )


def _versions(*packages: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
