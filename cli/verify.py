"""`phi3-onnx verify`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .json_output import echo_json
from .progress import progress_line
from .provider_library import provider_library
from .screen import notice, warn_of_clashing_wheels
from .table import Cell, Colored, print_lines, table_lines

if TYPE_CHECKING:
    from ..configs import Target
    from ..evaluate.parity.result import Verification
    from ..export import Checkpoint


@click.command()
@click.argument("package")
@click.option(
    "--reference",
    metavar="SOURCE|PACKAGE",
    help="The checkpoint; or a package, on the CPU: itself, or cpu-fp32.  [default: what the package was made from]",
)
@click.option("--revision", help="Commit, tag or branch of a hub checkpoint.")
@click.option("--adapter", metavar="DIR", help="PEFT adapter to merge into the checkpoint.  [default: the package's]")
@click.option("--provider", default="auto", show_default=True, help="Where the package runs: auto, cpu, cuda, dml.")
@provider_library
@click.option("-t", "--target", help="Whose thresholds to judge by.  [default: the package's own]")
@click.option(
    "--steps", type=click.IntRange(min=1), default=64, show_default=True, help="Greedy tokens of each conversation."
)
@click.option("--hashes", is_flag=True, help="Compare the sha256 sums of all files first.")
@click.option(
    "--key", type=click.Path(path_type=Path), help="Check only that this public key signed it as it lies here."
)
@click.option("--attestation", type=click.Path(path_type=Path), help="The signed statement.  [default: the package's]")
@click.option(
    "--record/--no-record", default=True, help="Write figures and self-test into the package.  [default: record]"
)
@click.option("--strict-clients", is_flag=True, help="Fail where another client's tokenizer differs too.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(
    package: str,
    reference: str | None,
    revision: str | None,
    adapter: str | None,
    provider: str,
    target: str | None,
    steps: int,
    hashes: bool,
    key: Path | None,
    attestation: Path | None,
    record: bool,
    strict_clients: bool,
    as_json: bool,
) -> None:
    """Check a package against the model that it was made from.

    Token ids, chat template, logits over text and greedy answers are compared with those of the checkpoint in float32
    PyTorch, which runs layer by layer. A package that passes gets a self-test, which is replayed wherever it is loaded
    first. Exit code 1 if a figure is out of the target's threshold. On 2 CPU cores a
    model of 3.8 B parameters takes some minutes.

    Where neither checkpoint nor PyTorch is at hand, `verify PACKAGE --provider dml --reference PACKAGE` compares what
    the provider computes with what the CPU computes from the same package. Nothing is recorded then.
    """
    if attestation is not None or key is not None:
        check_signature(package, key, attestation)
        return
    from ..configs import UsageError, find_package, find_target, read_manifest
    from ..configs.manifest import check_files

    judge = find_target(target) if target else None
    folder = find_package(package)
    if hashes:
        with progress_line("comparing sha256 sums"):
            check_files(folder, read_manifest(folder), hashes=True)
    if named := package_named(reference):
        if revision or adapter or strict_clients:
            raise UsageError(
                f"--revision, --adapter and --strict-clients go with a checkpoint, and {reference} is a package; leave "
                "them out"
            )
        compare_with_package(folder, named, judge, as_json=as_json, provider=provider, steps=steps)
        return
    _require_export(package, provider)
    checkpoint = open_reference(folder, reference, revision, adapter)
    verify_and_print(
        folder,
        checkpoint,
        judge,
        as_json=as_json,
        provider=provider,
        steps=steps,
        strict_clients=strict_clients,
        keep=record,
    )


def check_signature(package: str, key: Path | None, file: Path | None) -> None:
    """Check a package's signed statement, and print what was signed.

    Raises:
        UsageError: no key was named, or it cannot be read.
        PackageError: the key did not sign it, or it is not true of the package.

    """
    from ..configs import UsageError, find_package
    from ..configs.requirements import require_sign
    from .show import verification_lines

    if key is None:
        raise UsageError("name the signer's public key with --key: only that says who made a signature")
    require_sign()
    from ..export.package.attestation import check_attestation
    from ..export.package.keys import read_public

    found = check_attestation(find_package(package), read_public(key), file)
    stated = found.predicate
    source, adapter = stated["source"], stated["adapter"]
    revision = f" at {source['revision']}" if source["revision"] else ""
    click.echo(f"signed     by the key {found.key_id}")
    click.echo(f"files      {len(found.subjects)}, each as it was signed")
    click.echo(f"source     {source['uri']}{revision}" + (f" with adapter {adapter['path']}" if adapter else ""))
    click.echo(f"created    {stated['created']} by {', '.join(f'{k} {v}' for k, v in stated['tools'].items())}")
    for line in verification_lines(stated["verification"]):
        click.echo(line)


def package_named(reference: str | None) -> Path | None:
    """Return the folder if a reference is a package; None if it is a checkpoint, or none was named."""
    from ..configs import PackageError, find_package

    if reference is None:
        return None
    try:
        found = find_package(reference)
    except PackageError:  # a hub id or a file, then
        return None
    return found if (found / "genai_config.json").is_file() else None


def _require_export(package: str, provider: str) -> None:
    from ..configs.requirements import MissingExtraError, require_export

    try:
        require_export()
    except MissingExtraError as error:
        if provider == "cpu":
            raise
        without = f"phi3-onnx verify {package} --provider {provider} --reference {package}"
        remedy = f"{error.remedy}, or compare the provider with the CPU, which needs none of it: {without}"
        raise MissingExtraError(error.message, remedy=remedy) from error


def compare_with_package(
    folder: Path, reference: Path, target: "Target | None", *, as_json: bool, provider: str, steps: int
) -> None:
    """Hold a package against a package on the CPU, and print the figures.

    Raises:
        VerificationError: a row is out of its threshold; everything is printed before.

    """
    from ..evaluate.parity.package_reference import verify_by_package
    from ..runtime.package import open_package

    warn_of_clashing_wheels(provider)
    with progress_line("verifying") as progress:
        found = verify_by_package(folder, reference, target=target, provider=provider, steps=steps, progress=progress)
    _show(found, as_json, against=found.reference)
    found.check(f"{open_package(folder).name} on {found.provider}")


def open_reference(folder: Path, named: str | None, revision: str | None, adapter: str | None = None) -> "Checkpoint":
    """Open the checkpoint that was named, or else the one that the package was made from; so too for the adapter.

    A checkpoint that was named without an adapter has none: it may be what a trainer merged.

    Raises:
        UsageError: none was named, and the package does not say, or what it names is gone.
        SourceError: the checkpoint or the adapter cannot be used, or no longer what the package was made from.

    """
    from ..configs import SourceError, UsageError, read_manifest
    from ..configs.manifest import MANIFEST_NAME
    from ..export import open_checkpoint

    if named is not None:
        return open_checkpoint(named, revision=revision, adapter=adapter)
    if not (folder / MANIFEST_NAME).is_file():
        raise UsageError(f"{folder} does not say what it was made from; name its checkpoint with --reference")
    manifest = read_manifest(folder)
    merged = manifest.adapter
    try:
        checkpoint = open_checkpoint(
            manifest.source,
            revision=revision or manifest.revision,
            adapter=adapter or (str(merged) if merged else None),
        )
    except SourceError as error:
        raise SourceError(f"{error} (the package was made from it; name another with --reference)") from error
    if adapter is None and merged and checkpoint.adapter and checkpoint.adapter.sums != merged.sums:
        (expected, got), *_ = ((a, b) for a, b in zip(merged.sums, checkpoint.adapter.sums, strict=True) if a != b)
        file = "weights" if expected == merged.sha256 else "adapter_config.json"
        raise SourceError(
            f"the adapter {merged} is not what the package was made from any more: expected sha256 {expected} of its "
            f"{file}, got {got}; name the right one with --adapter, or export again"
        )
    return checkpoint


def verify_and_print(
    folder: Path,
    checkpoint: "Checkpoint",
    target: "Target | None" = None,
    *,
    as_json: bool,
    provider: str = "auto",
    steps: int = 64,
    strict_clients: bool = False,
    keep: bool = True,
) -> None:
    """Verify a package, write the figures and a self-test into it if `keep`, and print the figures.

    Raises:
        VerificationError: a row is out of its threshold; everything is recorded and printed before.

    """
    from ..evaluate.parity.verify import verify
    from ..export.package.attestation import ATTESTATION_NAME
    from ..runtime.package import open_package

    warn_of_clashing_wheels(provider)
    with progress_line("verifying") as progress:
        verification = verify(
            folder,
            checkpoint,
            target=target,
            provider=provider,
            steps=steps,
            strict_clients=strict_clients,
            progress=progress,
        )
    if keep:
        _record(folder, verification)
        if (folder / ATTESTATION_NAME).is_file():
            notice(
                "warning: what was signed of this package is its earlier verification; sign it again: phi3-onnx sign"
            )
    _show(verification, as_json, against=f"{verification.reference} in float32")
    for line in verification.warnings:
        notice(f"warning: {line}")
    opened = open_package(folder)
    verification.check(f"{checkpoint.model}/{target.name}" if target else opened.name)


def _record(folder: Path, verification: "Verification") -> None:
    from ..configs import OutputError
    from ..configs.manifest import MANIFEST_NAME
    from ..evaluate.parity.result import record

    try:
        record(folder, verification)
    except OutputError as error:
        if (folder / MANIFEST_NAME).is_file():
            raise
        # Another maker's package may lie where none may write.
        notice(f"warning: no self-test was kept: {error.message}")


def _show(verification: "Verification", as_json: bool, *, against: str) -> None:
    if as_json:
        echo_json(verification.to_dict(), indent=1)
        return
    rows: list[tuple[Cell, ...]] = []
    for row in verification.rows:
        limit = "" if row.threshold is None else f"{row.bound} {row.threshold:g}"
        outcome = {True: Colored("ok", "green"), False: Colored("FAILED", "bold red"), None: ""}[row.passed]
        outcome = Colored("differs", "yellow") if row.warning else outcome
        rows.append((row.name, f"{row.value:.4g}", limit, outcome, row.detail))
    lines = table_lines(rows, ("measured", "value", "must be", "", "over"), right=(1,))
    lines += [f"  {line}" for line in verification.passages]
    lines += [f"  {line}" for line in verification.skipped]
    lines.append(f"on {verification.provider}, against {against}, {verification.seconds:.0f} s")
    if verification.nodes:
        from ..runtime.providers.placement import Placement

        placement = Placement(verification.provider, verification.nodes)
        if placement.elsewhere:
            lines.append(str(placement))
    if all(row.threshold is None for row in verification.rows if row.name == "mean_kl"):
        lines.append("the logits were judged by nothing: the package names no target (see --target)")
    print_lines(lines)
