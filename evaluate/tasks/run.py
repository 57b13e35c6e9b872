"""Benchmarks of EleutherAI's lm-evaluation-harness on a package."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...configs import UsageError
from ...configs.origin import install_command
from .benchmarks import card_table


@dataclass(frozen=True)
class TaskResults:
    """What the harness found."""

    results: dict[str, dict[str, Any]]
    """Task -> metric (with its filter, such as `acc,none`) -> value."""
    table: str
    """The harness's own table, in Markdown."""
    card: str | None
    """A Markdown table of the figures beside those of the model's card, where it has any of them."""


def run_tasks(
    package: Path,
    tasks: Sequence[str],
    *,
    provider: str = "auto",
    num_fewshot: int | None = None,
    limit: int | None = None,
    include_path: Path | None = None,
    chat_template: bool = False,
    max_length: int | None = None,
    run_code: bool = False,
) -> TaskResults:
    """Run tasks on a package.

    Args:
        package: the package's folder.
        tasks: names of tasks or groups, or paths of task files.
        provider: where the package runs.
        num_fewshot: examples before each question; by default what the task says.
        limit: questions of each task at most.
        include_path: a folder with task files of one's own.
        chat_template: put questions through the package's chat template.
        max_length: tokens of context and answer together at most; by default 4096, or the model's context.
        run_code: let tasks that ask for programs run what the model wrote, on this machine and under this user.

    Raises:
        UsageError: the harness is not installed, or knows no such task, or one runs programs without `run_code`.
        PackageError: the package is damaged.
        ProviderError: the provider cannot run here.

    """
    if find_spec("lm_eval") is None:
        raise UsageError("tasks need lm_eval, which is not installed", remedy=f"run: {install_command('eval')}")
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]

    from .lm_eval_model import Phi3OnnxLM

    manager = TaskManager(include_path=str(include_path) if include_path else None)
    known = {task for name in tasks for task in manager.match_tasks([name])}
    if unknown := [name for name in tasks if name not in known and not Path(name).is_file()]:
        raise UsageError(f"lm_eval knows no task {', '.join(unknown)}; see: lm_eval ls tasks")
    if run_code:  # asked for a second time by the library that runs the programs
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    model = Phi3OnnxLM(package, provider=provider, max_length=max_length)
    try:
        found = simple_evaluate(
            model=model,
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=manager,
            apply_chat_template=chat_template,
            log_samples=False,
            confirm_run_unsafe_code=run_code,
        )
        manifest = model.model.package.manifest
    except ValueError as error:
        if run_code or not any(word in str(error) for word in ("unsafe", "HF_ALLOW_CODE_EVAL")):
            raise
        raise UsageError(
            f"of {', '.join(tasks)}, one runs the programs that the model writes; allow that with --run-code, "
            "on a machine where they cannot do harm"
        ) from error
    finally:
        model.model.close()
    assert found is not None, "only one process runs the harness"
    card = card_table(manifest, found["results"], _shots(found["n-shot"], found["group_subtasks"]))
    return TaskResults(found["results"], make_table(found), card)


def _shots(by_task: Mapping[str, int], groups: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Add to the harness's numbers those of groups, which are their first task's."""
    found = dict(by_task)
    for group in groups:
        first = group
        while first not in found and groups.get(first):
            first = groups[first][0]
        if first in found:
            found[group] = found[first]
    return found
