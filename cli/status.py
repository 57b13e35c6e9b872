"""One changing line that says what is being done, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .screen import quiet


@contextmanager
def status_line(first: str) -> Iterator[Callable[[str], None]]:
    """Show a line while the context lasts, and give what changes it; shows nothing where stderr is no terminal."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if quiet() or not console.is_terminal:
        yield lambda text: None
        return
    with console.status(first) as status:
        yield lambda text: status.update(text)
