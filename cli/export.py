"""`phi3-onnx export`."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..configs import PackageError, read_manifest
from ..configs.sizes import size
from .progress import progress_line
from .quantization_options import calibration_options, chosen_target, quantization_options
from .screen import notice

if TYPE_CHECKING:
    from ..configs import Target
    from ..export import Checkpoint, ExportPlan


@click.command()
@click.argument("source", required=False)
@click.option("-t", "--target", default="cpu-int4-rtn", show_default=True, help="What to make; see: phi3-onnx targets.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make.  [default: in the store]")
@click.option("--revision", help="Commit, tag or branch of a hub checkpoint.")
@click.option("--adapter", metavar="DIR", help="PEFT adapter (LoRA, DoRA) to merge into it: a folder or a hub id.")
@click.option("--force", is_flag=True, help="Replace the package that is already there.")
@click.option("--verify/--no-verify", default=True, help="Compare the package with its source.  [default: verify]")
@click.option("--strict-clients", is_flag=True, help="Fail where another client's tokenizer differs too.")
@click.option("--dry-run", is_flag=True, help="Check and plan only: graph, sizes, memory.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the manifest as JSON.")
@quantization_options
def command(source: str | None, target: str, output: Path | None, revision: str | None, **values: Any) -> None:
    """Make an ONNX package of a Phi-3 checkpoint.

    SOURCE is a Hugging Face folder, a hub id, or a .gguf file; by default microsoft/Phi-3-mini-4k-instruct.
    The package is compared with its source before it gets its final name.
    """
    if source is None:
        source = "microsoft/Phi-3-mini-4k-instruct"
        notice(f"source: {source}")
    make(source, target, output, revision=revision, **values)


def make(
    source: str,
    target: str,
    output: Path | None,
    *,
    revision: str | None,
    adapter: str | None,
    force: bool,
    verify: bool,
    strict_clients: bool,
    dry_run: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Export as the options of `export` and `quantize` say, and print what those print."""
    from ..configs.requirements import require_export

    require_export()
    from ..export import plan_export

    with progress_line("reading the source") as progress:
        plan = plan_export(
            source,
            chosen_target(target, values),
            output,
            revision=revision,
            adapter=adapter,
            force=force,
            calibration=calibration_options(values),
            budget=values["budget"],
            progress=progress,
        )
    config = plan.checkpoint.config
    notice(
        f"{plan.checkpoint.model}: {config.num_parameters / 1e9:.3g} B parameters, {config.num_layers} layers "
        f"-> {plan.target.name} ({plan.target.weights})"
    )
    if plan.checkpoint.adapter is not None:
        notice(f"merging {plan.checkpoint.adapter}: {plan.checkpoint.adapter.summary}")
    notice(f"writing {size(plan.package_bytes)} to {plan.output}, in about {size(plan.memory_bytes)} of memory")
    for names, scheme in plan.smaller_blocks.items():
        notice(f"{names}: blocks of {scheme.block_size}, which divide its columns")
    if plan.calibration is not None:
        about = plan.calibration.describe()
        notice(f"calibration text: {about['tokens']} tokens of {about['text']}")
    if dry_run:
        _print_plan(plan, as_json)
        return

    folder = run_plan(plan, verify=verify, strict_clients=strict_clients)
    if as_json:
        click.echo(read_manifest(folder).to_json(), nl=False)
        return
    name = _short_name(folder)
    notice(f"done; talk to it: phi3-onnx chat {name}")
    notice(f"      serve it: phi3-onnx serve {name}; on a text of yours: phi3-onnx evaluate {name} --text FILE")
    click.echo(folder)


def run_plan(plan: "ExportPlan", *, verify: bool, strict_clients: bool = False, heading: str = "") -> Path:
    """Carry out an export, verify the package and print the table if so asked, and return the package's folder.

    The heading is printed before the verification.
    """
    from ..export import run_export
    from .verify import verify_and_print

    with ExitStack() as shown:
        progress = shown.enter_context(progress_line("tracing the graph"))

        def check(folder: Path, checkpoint: "Checkpoint", target: "Target") -> None:
            shown.close()  # one changing line at a time
            if heading:
                notice(heading)
            verify_and_print(folder, checkpoint, target, strict_clients=strict_clients, as_json=False)

        return run_export(plan, verify=check if verify else None, progress=progress)


def _short_name(folder: Path) -> str:
    """Return the package's name in the store, or its folder."""
    from ..configs import list_packages

    try:
        return next((package.name for package in list_packages() if package.folder == folder), str(folder))
    except PackageError:
        return str(folder)


def _print_plan(plan: "ExportPlan", as_json: bool) -> None:
    table = {
        "source": str(plan.checkpoint.source),
        "adapter": str(plan.checkpoint.adapter) if plan.checkpoint.adapter else None,
        "model": plan.checkpoint.model,
        "target": plan.target.name,
        "output": str(plan.output),
        "weights": plan.target.weights,
        "package_bytes": plan.package_bytes,
        "bits_per_weight": round(plan.layout.weight_bytes * 8 / plan.checkpoint.config.num_parameters, 3),
        "memory_bytes": plan.memory_bytes,
        "ops": plan.graph.ops,
    }
    if as_json:
        click.echo(json.dumps(table, indent=1))
        return
    for key, value in table.items():
        if key != "ops" and value is not None:
            click.echo(f"{key:<16} {value}")
    for op, count in plan.graph.ops.items():
        click.echo(f"  {op:<34} {count:>5}")
