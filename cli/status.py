"""One changing line that says what is being done, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .screen import console, is_terminal, quiet


@contextmanager
def status_line(first: str) -> Iterator[Callable[[str], None]]:
    """Show a line while the context lasts, and give what changes it; shows nothing where stderr is not a terminal."""
    if quiet() or not is_terminal(stderr=True):
        yield lambda text: None
        return
    with console(stderr=True).status(first) as status:
        yield lambda text: status.update(text)
