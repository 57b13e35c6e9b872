"""One changing line on stderr: what is being done, how much of it is through, and the time that is left."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..configs.progress import Progress, silent
from ..configs.sizes import size
from .screen import console, is_terminal, quiet

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, Task


@contextmanager
def progress_line(first: str = "", *, still: bool = False) -> Iterator[Progress]:
    """Show the line while the context lasts, and give what changes it.

    It is gone afterwards, and there is none where stderr is not a terminal.

    Args:
        first: what is being done at first.
        still: change only when something is reported, so that nothing is drawn while a speed is measured.

    """
    if quiet() or not is_terminal(stderr=True):
        yield silent
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}"),
        _time_column(),
    )
    with Bars(*columns, console=console(stderr=True), transient=True, auto_refresh=not still) as bars:
        task = bars.add_task(first, total=None, count="")
        shown = (first, 0)

        def report(what: str, done: int = 0, total: int = 0, unit: str = "", /) -> None:
            nonlocal shown, task
            count = _count(done, total, unit)
            if (what, total) == shown:
                bars.update(task, completed=done, count=count)
            else:  # the time that is left is reckoned from this work's own pace
                shown = (what, total)
                bars.remove_task(task)
                task = bars.add_task(what, total=total or None, completed=done, count=count)
            if still:
                bars.refresh()

        yield report


def _count(done: int, total: int, unit: str) -> str:
    if not total:
        return ""
    return f"{size(done)} of {size(total)}" if unit == "bytes" else f"{done} of {total} {unit}"


def _time_column() -> "ProgressColumn":
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Time(ProgressColumn):
        """The time left, or the time since the beginning where nobody knows how much there is."""

        def render(self, task: "Task") -> Text:
            if task.total is None:
                return Text(_clock(task.elapsed or 0))
            left = task.time_remaining
            return Text("" if left is None else f"{_clock(left)} left")

    return Time()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
