"""What `chat` and `generate` share: their flags, loading a package, and showing an answer as it comes."""

import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .screen import notice, quiet, warn_of_clashing_wheels

if TYPE_CHECKING:
    from ..runtime import Chunk, Model, Response

_F = TypeVar("_F", bound=Callable[..., Any])

SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "max_tokens", "stop")
"""Flags that are options of `Model.generate` under the same name."""

_OPTIONS = (
    click.option("--system", metavar="TEXT", help="System message."),
    click.option("-n", "--max-tokens", type=click.IntRange(1), help="Longest answer.  [default: 1024, or what fits]"),
    click.option(
        "--temperature", type=click.FloatRange(0), help="0 takes the most likely token always.  [default: the model's]"
    ),
    click.option(
        "--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw from tokens with this probability in all."
    ),
    click.option("--top-k", type=click.IntRange(0), help="Draw from this many tokens at most; 0 draws from all."),
    click.option("--repetition-penalty", type=click.FloatRange(0, min_open=True), help="Above 1, repeat less."),
    click.option("--seed", type=click.IntRange(0), help="The same seed gives the same text."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated."),
)


def _list_devices(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from .doctor import print_devices

        print_devices()
        ctx.exit()


_LOADING_OPTIONS = (
    click.option(
        "--provider",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="auto, cpu, cuda, dml, or another execution provider of the installed ONNX Runtime.",
    ),
    click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: the physical cores]"),
    click.option("--device", type=click.IntRange(0), help="Number of the GPU, where there are several."),
    click.option(
        "--list-devices",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_list_devices,
        help="Print the processors of this machine, and leave.",
    ),
)


def answering_options(command: _F) -> _F:
    """Give a command the flags that decide how a package is loaded and how it answers."""
    for option in reversed((*_OPTIONS, *_LOADING_OPTIONS)):
        command = option(command)
    return command


def loading_options(command: _F) -> _F:
    """Give a command the flags that decide how a package is loaded, and no others."""
    for option in reversed(_LOADING_OPTIONS):
        command = option(command)
    return command


def load_model(
    package: str | None, provider: str, threads: int | None, device: int | None, *, to_batch: bool = False
) -> "Model":
    """Load the package that was named, or the newest that fits the provider, and say which on which provider.

    With `to_batch`, in an engine that answers several prompts side by side, where the package lets it.

    Raises:
        Phi3OnnxError: as `runtime.load`; or no package was named and the store has none that fits.

    """
    from ..configs import default_package
    from ..runtime import load
    from ..runtime.batch import load_to_batch
    from ..runtime.hardware import format_bytes
    from ..runtime.providers import canonical

    if package is None:
        wanted = canonical(provider)
        stored = default_package(None if wanted == "auto" else wanted)
        notice(f"no package was named, taking {stored.name}")
        package = str(stored.folder)
    warn_of_clashing_wheels(provider)
    if to_batch:
        model = load_to_batch(package, provider=provider, threads=threads, device=device, notify=notice)
    else:
        model = load(package, provider=provider, threads=threads, device=device)
    model.on_reserve = lambda tokens, size: notice(f"KV cache: {format_bytes(size)} for {tokens} tokens")
    notice(f"{model.package.name} on {model.provider} ({model.choice})")
    return model


@contextmanager
def cancel_on_interrupt() -> Iterator[threading.Event]:
    """Let the first Ctrl-C set the event that is given, and the second interrupt for good."""
    cancel = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield cancel
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


def show(chunks: "Iterator[Chunk]") -> "Response":
    """Print an answer on stdout as it comes, end its last line, and return the response."""
    if isinstance(sys.stdout, io.TextIOWrapper) and (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8"):
        sys.stdout.reconfigure(errors="replace")  # a console of an old code page must not end an answer with an emoji
    ended = True
    for chunk in chunks:
        if chunk.text:
            click.echo(chunk.text, nl=False)
            ended = chunk.text.endswith("\n")
        if chunk.response:
            if not ended:
                click.echo()
            return chunk.response
    raise RuntimeError("a stream of chunks ended without a response")


def prefill_bar() -> Callable[[int, int], None]:
    """Return a callback that shows on a terminal how much of a long prompt is read."""

    def report(done: int, total: int) -> None:
        if total < 1024 or quiet() or not sys.stderr.isatty():
            return
        line = f"reading the prompt: {done} of {total} tokens" if done < total else ""
        click.echo(f"\r\x1b[K{line}", err=True, nl=False)

    return report


def summary(response: "Response") -> str:
    """Say in one line what an answer took."""
    cached = f" ({response.cached_tokens} cached)" if response.cached_tokens else ""
    reasons = {"stop": "", "length": "; cut at its longest", "cancelled": "; cancelled"}
    return (
        f"prompt {response.prompt_tokens} tokens{cached}, {response.prefill_tokens_per_second:.1f} tok/s; "
        f"answer {response.completion_tokens} tokens, {response.decode_tokens_per_second:.1f} tok/s"
        f"{reasons[response.finish_reason]}"
    )


def named_options(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `Model.generate` among a command's values, those that were given."""
    return {key: values[key] for key in SAMPLING if values.get(key) not in (None, ())}
