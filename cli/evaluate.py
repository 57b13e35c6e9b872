"""`phi3-onnx evaluate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from .json_output import echo_json
from .progress import progress_line
from .provider_library import provider_library
from .screen import notice, warn_of_clashing_wheels

if TYPE_CHECKING:
    from ..evaluate.evaluate import Evaluation
    from ..evaluate.parity.metrics import Perplexity


@click.command()
@click.argument("package")
@click.option(
    "--reference",
    metavar="SOURCE|PACKAGE",
    help="What to compare with: a checkpoint, or another package.  [default: what the package was made from]",
)
@click.option("--no-reference", is_flag=True, help="Measure the package's perplexity alone.")
@click.option("--revision", help="Commit, tag or branch of a hub checkpoint.")
@click.option("--text", type=click.File(encoding="utf-8"), help="A text, - for stdin.  [default: phi3-onnx's own]")
@click.option("--max-tokens", type=click.IntRange(min=2), help="Take no more of the text.")
@click.option(
    "--context",
    type=click.IntRange(min=2),
    help="Tokens that are run together.  [default: 2048 of a text, 4096 of a task]",
)
@click.option("--tasks", metavar="NAMES", help="Run tasks of lm-evaluation-harness instead, such as arc_easy,mmlu.")
@click.option("--num-fewshot", type=click.IntRange(min=0), help="Examples before each question of a task.")
@click.option("--limit", type=click.IntRange(min=1), help="Questions of each task at most.")
@click.option(
    "--include-path", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of your own tasks."
)
@click.option("--run-code", is_flag=True, help="Let tasks run the programs that the model writes (humaneval, mbpp).")
@click.option("--apply-chat-template", is_flag=True, help="Put a task's questions through the chat template.")
@click.option("--provider", default="auto", show_default=True, help="Where packages run: auto, cpu, cuda, dml.")
@provider_library
@click.option("--plot", type=click.Path(path_type=Path), help="Draw distances and surprise into a .svg or .png file.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(
    package: str,
    reference: str | None,
    no_reference: bool,
    revision: str | None,
    text: TextIO | None,
    max_tokens: int | None,
    context: int | None,
    tasks: str | None,
    num_fewshot: int | None,
    limit: int | None,
    include_path: Path | None,
    run_code: bool,
    apply_chat_template: bool,
    provider: str,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure a package on a text of your own, or on benchmarks.

    Prints its perplexity and, against the reference, the KL divergence of its next-token distributions (mean, median,
    99th percentile, in nats) and how often both rank the same token first.

    With --tasks, runs EleutherAI's lm-evaluation-harness instead, which has the benchmarks of model cards.
    """
    from ..configs import UsageError, find_package

    if no_reference and reference is not None:
        raise UsageError("--reference and --no-reference exclude each other")
    if tasks is not None and (text is not None or reference is not None):
        raise UsageError("--tasks measures the package alone; leave --text and --reference out")
    if tasks is not None and plot is not None:
        raise UsageError("--plot draws what a text shows; leave --tasks or --plot out")
    folder = find_package(package)
    if plot is not None:
        from .plot import check_plot

        check_plot(plot)
    warn_of_clashing_wheels(provider)
    if tasks is not None:
        from ..evaluate.tasks.run import run_tasks

        found_tasks = run_tasks(
            folder,
            [name.strip() for name in tasks.split(",") if name.strip()],
            provider=provider,
            num_fewshot=num_fewshot,
            limit=limit,
            include_path=include_path,
            chat_template=apply_chat_template,
            max_length=context,
            run_code=run_code,
        )
        if as_json:
            click.echo(json.dumps(found_tasks.results, indent=1, default=str))
            return
        click.echo(found_tasks.table)
        if found_tasks.card:
            click.echo(f"Per cent, beside the model's card, whose prompts are not public:\n\n{found_tasks.card}")
        return
    from ..configs.requirements import require_export
    from ..evaluate.evaluate import CONTEXT, evaluate
    from ..evaluate.parity.corpus import text as own_text
    from .verify import open_reference, package_named

    try:
        content = own_text() if text is None else text.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"{text and text.name} is not UTF-8 text: {error}") from error
    against = package_named(reference)
    if against is None and not no_reference:
        require_export()
        against = open_reference(folder, reference, revision)
    with progress_line("evaluating") as progress:
        found = evaluate(
            folder,
            content,
            reference=against,
            provider=provider,
            max_tokens=max_tokens,
            context=context or CONTEXT,
            progress=progress,
        )
    if plot is not None:
        from .plot import plot_evaluation

        plot_evaluation(found, plot)
        notice(f"drew {plot}")
    if as_json:
        echo_json(found.to_dict(), indent=1)
    else:
        _print(found)


def _print(found: "Evaluation") -> None:
    rows: list[tuple[str, str]] = [("package", f"{found.package} on {found.provider}")]
    metrics = found.metrics
    if found.reference is not None:
        rows.append(("reference", found.reference))
    rows.append(("text", f"{found.tokens} tokens, {found.context} at a time"))
    rows.append(("perplexity", _perplexity(found.perplexity)))
    if metrics is not None:
        rows += [
            ("of the reference", _perplexity(metrics.reference)),
            ("ratio", f"{metrics.perplexity_ratio:.5g}"),
            ("KL divergence", f"mean {metrics.mean_kl:.4g}, median {metrics.median_kl:.4g}, p99 {metrics.p99_kl:.4g}"),
            ("same top token", f"{metrics.top1_agreement:.2%}"),
            ("max difference", f"{metrics.max_abs_diff:.4g} (logits)"),
        ]
    for name, value in rows:
        click.echo(f"{name:<17} {value}")


def _perplexity(perplexity: "Perplexity") -> str:
    return f"{perplexity.value:.5g} ± {perplexity.standard_error:.2g}"
