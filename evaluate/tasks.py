"""Benchmarks of EleutherAI's lm-evaluation-harness on a package."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..configs import UsageError


@dataclass(frozen=True)
class TaskResults:
    """What the harness found."""

    results: dict[str, dict[str, Any]]
    """Task -> metric (with its filter, such as `acc,none`) -> value."""
    table: str
    """The harness's own table, in Markdown."""


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

    Raises:
        UsageError: the harness is not installed, or knows no such task.
        PackageError: the package is damaged.
        ProviderError: the provider can not run here.

    """
    if find_spec("lm_eval") is None:
        raise UsageError('tasks need lm_eval, which is not installed; run: pip install "phi3-onnx[eval]"')
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]

    from .lm_eval_model import Phi3OnnxLM

    manager = TaskManager(include_path=str(include_path) if include_path else None)
    known = {task for name in tasks for task in manager.match_tasks([name])}
    if unknown := [name for name in tasks if name not in known and not Path(name).is_file()]:
        raise UsageError(f"lm_eval knows no task {', '.join(unknown)}; see: lm_eval ls tasks")
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
        )
    finally:
        model.model.close()
    assert found is not None, "only one process runs the harness"
    return TaskResults(found["results"], make_table(found))
