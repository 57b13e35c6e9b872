"""Which engine runs a package: plain ONNX Runtime or ONNX Runtime GenAI."""

from collections.abc import Callable
from typing import Literal, cast, get_args

from ...configs import PackageError, ProviderError, SelfTestError, UsageError
from ...configs.extras import GENAI, ONNXRUNTIME
from ..decoding.engine import Engine, Prove
from ..decoding.speculation import Speculation
from ..package import Package
from ..providers.choice import ProviderChoice
from ..providers.names import canonical
from ..providers.wheels import installed_wheels
from .genai import GenAiEngine, load_engine
from .ort import OrtEngine, load_ort_engine
from .packed import DECODE_NAME
from .packed_engine import PackedEngine, load_packed_engine
from .settings import PLAIN, EngineKind, EngineSettings, Suits

EngineChoice = Literal["auto", "ort", "genai"]
"""What a user can ask for."""
EngineName = Literal["auto", "ort", "genai", "together", "onnxruntime"]
"""Those, and the two that `ort` takes: of `decode.onnx`, which decodes together, and of `model.onnx`."""

Notify = Callable[[str], None]
_Loaded = tuple[Engine, ProviderChoice]
_PLAIN_PROVIDERS = ("cpu", "cuda")


def _own_settings(_kind: EngineKind) -> EngineSettings:
    return PLAIN


def load_named(
    package: Package,
    provider: str,
    engine: EngineName,
    *,
    threads: int | None = None,
    device: int | None = None,
    prove: Prove | None = None,
    speculation: Speculation,
    suits: Suits = _own_settings,
    takes_turns: bool = False,
    notify: Notify,
) -> _Loaded:
    """Load a package in the engine named, or with `auto` in the one that suits it.

    `auto` is `ort` for a package with `decode.onnx` on the CPU, and wherever GenAI is not installed; else GenAI.

    Args:
        package: the package.
        provider: as for `runtime.load`.
        engine: likewise.
        threads: likewise.
        device: likewise.
        prove: tries each engine before it is taken.
        speculation: how far answers are to run ahead, which only `decode.onnx` can.
        suits: returns what suits each engine on this machine; threads that are named win.
        takes_turns: whether another model runs on the same cores in between, as one that drafts does.
        notify: called with a line where `auto` leaves an engine out that computes wrongly.

    Raises:
        UsageError: there is no such engine, or answers cannot run ahead in it.
        ProviderError: the provider cannot run here, or `prove` refuses it.
        PackageError: the package cannot be loaded.

    """
    if engine not in get_args(EngineName):
        raise UsageError(f"the engine must be one of {', '.join(get_args(EngineChoice))}, got {engine!r}")

    if _settled(package, provider) != "cpu":
        suits = _own_settings  # what suits a processor says nothing of a GPU

    def loaded(kind: EngineKind, *, rows: bool = True) -> _Loaded:
        settings = suits(kind)
        wanted = threads or settings.threads
        found: PackedEngine | OrtEngine | GenAiEngine
        if kind == "together":
            found, choice = load_packed_engine(
                package,
                provider,
                threads=wanted,
                prove=prove,
                copy=settings.copy,
                trial=settings.trial,
                takes_turns=takes_turns,
            )
            found.longest_piece = settings.prefill_chunk or found.longest_piece
            if not threads:  # what a step takes was measured with those that suit it
                found.graph.trial_seconds.update(settings.step_seconds)
        elif kind == "onnxruntime":
            found, choice = load_ort_engine(package, provider, threads=wanted, device=device, prove=prove, rows=rows)
        else:
            found, choice = load_engine(package, provider, threads=wanted, device=device, prove=prove)
        found.prefill_chunk = settings.prefill_chunk or found.prefill_chunk
        return found, choice

    if speculation.always and not (engine in ("auto", "ort", "together") and _decodes_together(package, provider)):
        raise UsageError(
            f"answers run ahead (speculate {speculation}) only with {DECODE_NAME} on the CPU, engine ort: "
            f"{_why_not(package, provider, engine)}; take speculate auto or off"
        )
    if engine in ("together", "onnxruntime", "genai"):
        return loaded(engine)
    if engine == "ort":
        return loaded("together") if _decodes_together(package, provider) else loaded("onnxruntime", rows=False)
    if _decodes_together(package, provider):
        try:
            return loaded("together")
        except SelfTestError as error:
            if speculation.always or not _has(GENAI):
                raise
            notify(f"warning: {error}")
        except (PackageError, ProviderError):
            if speculation.always:
                raise
    if not _has(GENAI) and _has(ONNXRUNTIME) and _settled(package, provider) in _PLAIN_PROVIDERS:
        return loaded("onnxruntime", rows=False)
    return loaded("genai")


def _decodes_together(package: Package, provider: str) -> bool:
    return _settled(package, provider) == "cpu" and (package.folder / DECODE_NAME).is_file()


def _settled(package: Package, provider: str) -> str:
    """Return the provider that is wanted, or that the package was made for."""
    wanted = canonical(provider)
    return cast("str", package.made_for or "cpu") if wanted == "auto" else wanted


def _has(module: str) -> bool:
    return any(wheel.module == module for wheel in installed_wheels())


def _why_not(package: Package, provider: str, engine: EngineName) -> str:
    if engine not in ("auto", "ort", "together"):
        return f"engine {engine} was asked for"
    if (settled := _settled(package, provider)) != "cpu":
        return f"the provider is {settled}"
    return f"{package.name} has no {DECODE_NAME}"


def kind_of(engine: Engine) -> EngineKind:
    """Return which engine a loaded one is."""
    return (
        "together" if isinstance(engine, PackedEngine) else "onnxruntime" if isinstance(engine, OrtEngine) else "genai"
    )
