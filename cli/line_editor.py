"""Reading what a person types: editing and history on a terminal, plain lines from a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from ..configs import UsageError

_HISTORY_LINES = 1000
FENCE = '"""'


class LineEditor:
    """Reads messages: one line each, or several between two lines of triple quotes.

    On a terminal the `readline` of Python's standard library edits lines and keeps a history, where Python has one; on
    Windows the console does both.
    """

    def __init__(self, history: Path | None = None) -> None:
        """Prepare for the standard input that there is; `history` is a file to keep what is typed in."""
        self.interactive = sys.stdin.isatty()
        self._history = history
        self._readline = self._start_readline() if self.interactive else None

    def messages(self, on_interrupt: Callable[[], None]) -> Iterator[str]:
        """Yield each message until the input ends; blank lines are none.

        Args:
            on_interrupt: called when Ctrl-C is pressed at the prompt; may raise.

        """
        while True:
            try:
                text = self._message()
            except EOFError:
                if self.interactive:
                    click.echo(err=True)
                return
            except KeyboardInterrupt:
                click.echo(err=True)
                on_interrupt()
                continue
            if text.strip():
                yield text

    def close(self) -> None:
        """Write the history."""
        if self._readline and self._history:
            with suppress(OSError):  # a full or read-only disk must not spoil the goodbye
                self._history.parent.mkdir(parents=True, exist_ok=True)
                self._readline.set_history_length(_HISTORY_LINES)
                self._readline.write_history_file(str(self._history))

    def _start_readline(self) -> Any:
        try:
            import readline
        except ImportError:
            return None
        if self._history:
            with suppress(OSError):  # none yet
                readline.read_history_file(str(self._history))
        return readline

    def _message(self) -> str:
        line = self._line(">>> ")
        if not line.lstrip().startswith(FENCE):
            return line
        lines = [line.lstrip().removeprefix(FENCE)]
        while not lines[-1].rstrip().endswith(FENCE):
            try:
                lines.append(self._line("... "))
            except EOFError:  # what was said counts, though the quotes were never closed
                return "\n".join(lines).strip("\n")
        lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str:
        if not self.interactive:
            line = sys.stdin.buffer.readline()
            if not line:
                raise EOFError
            try:
                return line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UsageError(f"stdin is not UTF-8 text: {error}") from error
        if sys.stdout.isatty():
            return input(prompt)
        # Answers go down a pipe: the prompt must not go with them.
        click.echo(prompt, err=True, nl=False)
        return input()
