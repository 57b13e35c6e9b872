"""`phi3-onnx show`."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..configs import Manifest
from ..configs.sizes import size
from .screen import notice
from .table import print_lines, table_lines


@click.command()
@click.argument("package")
@click.option("--tensors", is_flag=True, help="List how each weight matrix is stored.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw each layer's error into a .svg or .png file.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def command(package: str, tensors: bool, plot: Path | None, as_json: bool) -> None:
    """Describe a package: target, source, sizes, operators, bits per weight, verification.

    A package that phi3-onnx did not make has no manifest: it is described by its genai_config.json and its graph.
    """
    from ..configs import UsageError, find_package, read_manifest
    from ..configs.manifest import MANIFEST_NAME, check_files

    folder = find_package(package)
    if not (folder / MANIFEST_NAME).is_file():
        if plot is not None or tensors:
            raise UsageError(
                f"{folder} has no {MANIFEST_NAME}, where a package made by phi3-onnx says how its matrices are stored; "
                f"leave {'--plot' if plot is not None else '--tensors'} out"
            )
        _show_foreign(folder, as_json)
        return
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if plot is not None:
        from .plot import plot_errors

        plot_errors(manifest, plot)
        notice(f"drew {plot}")
    if as_json:
        click.echo(manifest.to_json(), nl=False)
        return
    _print(rows(folder, manifest), *verification_lines(manifest.verification), *_tuning_lines(folder))
    if tensors and manifest.tensors:
        print_lines(tensor_lines(manifest))


def rows(folder: Path, manifest: Manifest) -> list[tuple[str, Any]]:
    """Return what a manifest says, but for its verification, as names and texts."""
    from . import foreign

    total = sum(entry.size for entry in manifest.files.values())
    revision = f" at {manifest.revision}" if manifest.revision else ""
    adapter, target = manifest.adapter, manifest.target
    schemes = Counter(tensor.storage for tensor in manifest.tensors.values())
    table: list[tuple[str, Any]] = [
        ("package", folder),
        ("model", manifest.model),
        ("source", f"{manifest.source}{revision}"),
        *([("adapter", f"{adapter} ({adapter.summary}), sha256 {adapter.sha256}")] if adapter else []),
        ("target", f"{target.name} (provider {target.provider}, {target.io_dtype}, {target.weights})"),
        ("created", f"{manifest.created} by {', '.join(f'{k} {v}' for k, v in manifest.versions.items())}"),
        ("size", f"{size(total)} in {len(manifest.files)} files"),
        ("weights", f"{manifest.num_parameters / 1e9:.3g} B, {manifest.bits_per_weight:.2f} bits per weight"),
        ("matrices", ", ".join(f"{count} x {scheme}" for scheme, count in schemes.most_common())),
        ("operators", ", ".join(f"{count} {op}" for op, count in manifest.ops.items())),
    ]
    if "decode.onnx" in manifest.files:
        table.append(
            ("together", "decode.onnx with an int8 KV cache: an answer is the same in any company (on the CPU)")
        )
    if target.quantization:
        table.append(("method", target.quantization.method))
    table.append(("self-test", foreign.self_test_line(folder)))
    return table


def tensor_lines(manifest: Manifest) -> list[str]:
    """Return how each weight matrix is stored, in a line."""
    lines: list[str] = []
    for name, tensor in manifest.tensors.items():
        error = "" if tensor.relative_error is None else f"  error {tensor.relative_error:.4f}"
        details = "".join(f"  {key} {value}" for key, value in tensor.details.items())
        lines.append(f"  {name:<48} {tensor.shape!s:<16} {tensor.storage:<28}{error}{details}")
    return lines


def _show_foreign(folder: Path, as_json: bool) -> None:
    from . import foreign

    found = foreign.describe(folder)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    _print(foreign.rows(found))


def _print(table: Sequence[tuple[str, Any]], *more: str) -> None:
    print_lines([*table_lines([(name, str(value)) for name, value in table], first=9), *more])


def _tuning_lines(folder: Path) -> Iterator[str]:
    from ..runtime.proof.prepacked import describe_copy
    from ..runtime.proof.tuning import tunings_of

    for kind, tuning in tunings_of(folder).items():
        yield f"tuned      here, for {kind}: {tuning}"
    if copy := describe_copy(folder):
        yield f"prepacked  here: {copy}"


def verification_lines(verification: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what the last verification found, line by line."""
    if verification is None:
        yield "verified   not yet; run: phi3-onnx verify"
        return
    outcome = "passed" if verification["passed"] else "FAILED"
    yield f"verified   {outcome} on {verification['provider']}, {verification['created']}"
    for row in verification["rows"]:
        mark = {True: "ok", False: "FAILED", None: "differs" if row.get("warning") else ""}[row["passed"]]
        value = "not finite" if row["value"] is None else f"{row['value']:.4g}"
        yield f"  {row['name']:<21} {value:>10}  {mark}"
