"""What `chat` and `generate` share: their flags, loading a package, and showing an answer as it comes."""

import io
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..configs.options import OPTIONS, Option
from ..configs.sizes import size
from .provider_library import provider_library
from .screen import notice, quiet, warn_of_clashing_wheels

if TYPE_CHECKING:
    from ..runtime import Chunk, Model, Response
    from ..runtime.engines.load import EngineChoice

_F = TypeVar("_F", bound=Callable[..., Any])


def _flag(option: Option) -> Callable[[_F], _F]:
    """Return the flag of an option of an answer."""
    help_text = option.help if option.default in ("", "none") else f"{option.help}  [default: {option.default}]"
    # The name first, so that the parameter has it whatever other names there are.
    names = (option.name, *option.short, *(f"--{name.replace('_', '-')}" for name in (option.name, *option.spellings)))
    if option.kind is bool:
        return click.option(*names, is_flag=True, default=None, help=help_text)
    if option.kind is tuple:
        return click.option(*names, multiple=True, metavar="TEXT", help=help_text)
    if option.kind is dict:
        help_text = help_text.replace("  [", " May be repeated.  [")
        return click.option(*names, multiple=True, metavar="TOKEN=NUMBER", callback=_read_pairs, help=help_text)
    bounds = {"min": option.range.least, "max": option.range.most}
    bounds = {name: option.kind(bound) for name, bound in bounds.items() if math.isfinite(bound)}
    number = click.IntRange if option.kind is int else click.FloatRange
    return click.option(*names, type=number(**bounds, min_open=option.range.open), help=help_text)


def _read_pairs(ctx: click.Context, param: click.Parameter, given: Sequence[str]) -> Mapping[int, float]:
    try:
        return read_pairs(given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def read_pairs(texts: Iterable[str]) -> Mapping[int, float]:
    """Return numbers by token id, from texts such as `15043=-100`.

    Raises:
        ValueError: a text is not of this form.

    """
    pairs: dict[int, float] = {}
    for text in texts:
        token, _, number = text.partition("=")
        try:
            pairs[int(token)] = float(number)
        except ValueError as error:
            raise ValueError(f"{text!r} must be a token's id and a number, such as 15043=-100") from error
    return pairs


_OPTIONS = (
    click.option("--system", metavar="TEXT", help="System message."),
    *(_flag(option) for option in OPTIONS.values()),
)


def _list_devices(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from .doctor import print_devices

        print_devices()
        ctx.exit()


def check_speculation(ctx: click.Context, param: click.Parameter, given: str) -> str:
    """Let pass what `--speculate` takes."""
    from ..configs import UsageError
    from ..runtime.decoding.speculation import Speculation

    try:
        Speculation.parse(given)
    except UsageError as error:
        raise click.BadParameter(str(error)) from error
    return given


_LOADING_OPTIONS = (
    click.option(
        "--provider",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="auto, cpu, cuda, dml, or another execution provider of the installed ONNX Runtime.",
    ),
    provider_library,
    click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: the physical cores]"),
    click.option("--device", type=click.IntRange(0), help="Number of the GPU, where there are several."),
    click.option(
        "--engine",
        type=click.Choice(["auto", "ort", "genai"]),
        default="auto",
        show_default=True,
        help="What runs the package: ONNX Runtime by itself (ort), ONNX Runtime GenAI, or what suits it (auto).",
    ),
    click.option(
        "--speculate",
        callback=check_speculation,
        default="auto",
        show_default=True,
        metavar="auto|off|N",
        help="Run answers ahead where they repeat what their prompt says: the same tokens in fewer steps. N: always, "
        "so many tokens.",
    ),
    click.option(
        "--draft",
        metavar="PACKAGE",
        help="A smaller model with the same tokenizer that writes what answers run ahead with; no token changes.",
    ),
    click.option(
        "--self-test/--no-self-test",
        default=True,
        help="Replay the package's self-test before its first use on this device and version.  [default: self-test]",
    ),
    click.option(
        "--list-devices",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_list_devices,
        help="Print the processors of this machine, and exit.",
    ),
)


@dataclass(frozen=True)
class Loading:
    """What the flags say of how a package is loaded."""

    provider: str
    threads: int | None
    device: int | None
    engine: "EngineChoice"
    speculate: str
    draft: str | None
    self_test: bool

    def find(self, package: str | None) -> Path:
        """Return the folder of the package that was named, or of the newest that fits the provider, and say which.

        Raises:
            Phi3OnnxError: there is no such package; or none was named and the store has none that fits.

        """
        from ..configs import default_package, find_package
        from ..runtime.providers.names import canonical

        if package is not None:
            return find_package(package)
        wanted = canonical(self.provider)
        stored = default_package(None if wanted == "auto" else wanted)
        notice(f"no package was named, taking {stored.name}")
        return stored.folder

    def load(self, package: str | None, *, to_batch: bool = False) -> "Model":
        """Load what `find` finds, and say on which provider.

        With `to_batch`, in an engine that answers several prompts side by side, where the package lets it.

        Raises:
            Phi3OnnxError: as `find`, and as `runtime.load`.

        """
        from ..runtime import load
        from ..runtime.model import load_to_batch

        folder = self.find(package)
        warn_of_clashing_wheels(self.provider)
        how = asdict(self)
        model = (load_to_batch if to_batch else load)(folder, **how, notify=notice)
        model.on_reserve = lambda tokens, taken: notice(f"KV cache: {size(taken)} for {tokens} tokens")
        notice(f"{model.package.name} on {model.provider} ({model.choice})")
        return model


def loading_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags that decide how a package is loaded; it takes them together, as `loading`."""

    @wraps(command)
    def bundled(**values: Any) -> None:
        named = {field.name: values.pop(field.name) for field in fields(Loading)}
        command(loading=Loading(**named), **values)

    return _with(_LOADING_OPTIONS, bundled)


def answering_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command those flags, and those that decide how a package answers.

    It takes the latter as `options`: keywords of `Model.generate`, of flags that were given; and `system`.
    """

    @wraps(command)
    def bundled(**values: Any) -> None:
        named = {key: values.pop(key) for key in OPTIONS}
        command(options={key: value for key, value in named.items() if value not in (None, (), {})}, **values)

    return _with(_OPTIONS, loading_options(bundled))


def _with(options: Iterable[Callable[[_F], _F]], command: _F) -> _F:
    for option in reversed(tuple(options)):
        command = option(command)
    return command


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
