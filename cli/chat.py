"""`phi3-onnx chat`."""

from typing import TYPE_CHECKING, Any

import click

from ..configs import Phi3OnnxError
from .answering import Loading, answering_options, cancel_on_interrupt, prefill_bar, show, summary
from .chat_commands import ChatCommands
from .line_editor import LineEditor
from .screen import notice, quiet, reply

if TYPE_CHECKING:
    from ..runtime import ChatSession, Model


@click.command()
@click.argument("package", required=False)
@answering_options
@click.option(
    "--on-overflow",
    type=click.Choice(["stop", "slide", "error"]),
    default="stop",
    show_default=True,
    help="At the context's end: cut the answer there, forget the oldest turns, or refuse a turn that may not fit.",
)
def command(
    package: str | None,
    system: str | None,
    loading: Loading,
    options: dict[str, Any],
    on_overflow: Any,
) -> None:
    """Talk to a package; /help lists what else can be said.

    PACKAGE is a folder or a name in the store; without it the newest package is taken. Messages come from stdin, one a
    line, answers go to stdout and everything else to stderr, so it works in a pipe too.
    """
    from ..configs.store import home

    with loading.load(package) as model:
        session = model.chat(system=system, on_overflow=on_overflow, **options)
        editor = LineEditor(home() / "chat_history")
        try:
            _Chat(model, session, editor).run()
        finally:
            editor.close()
            session.close()


class _Chat:
    """The loop of messages, commands and answers."""

    def __init__(self, model: "Model", session: "ChatSession", editor: LineEditor) -> None:
        self._session = session
        self._editor = editor
        self._commands = ChatCommands(model, session)
        self._interrupted = False

    def run(self) -> None:
        """Answer until the input ends or /bye is said."""
        if not quiet():
            self._commands.open()
        if self._editor.interactive:
            notice("/help lists the commands, /bye ends the chat")
        for text in self._editor.messages(self._on_interrupt):
            self._interrupted = False
            try:
                self._take(text)
            except Phi3OnnxError as error:
                # At a terminal one can try something else; a script has to hear of it.
                if not self._editor.interactive:
                    raise
                reply(f"{error}")
            if self._commands.done:
                return

    def _take(self, text: str) -> None:
        if text.startswith("/") and not text.startswith("//"):
            self._commands.run(text)
            if self._commands.again:
                self._commands.again = False
                self._answer(None)
            return
        attached, self._commands.attached = self._commands.attached, ""
        self._answer(attached + (text[1:] if text.startswith("//") else text))

    def _answer(self, text: str | None) -> None:
        """Show the answer to a message, or with None another one to the last."""
        before = self._session.forgotten
        with cancel_on_interrupt() as cancel:
            bar = prefill_bar()
            if text is None:
                chunks = self._session.regenerate(cancel=cancel, on_prefill=bar)
            else:
                chunks = self._session.send(text, cancel=cancel, on_prefill=bar)
            response = show(chunks)
        self._commands.record(response)
        if (forgotten := self._session.forgotten - before) > 0:
            notice(f"the context was full: {forgotten} old messages are forgotten")
        notice(summary(response))

    def _on_interrupt(self) -> None:
        if self._interrupted:
            raise click.exceptions.Exit(130)
        self._interrupted = True
        notice("Ctrl-C again or /bye ends the chat")
