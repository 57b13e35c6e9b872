"""Which provider runs a package, why it and no other, and what to do about one that cannot."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from ...configs import PackageError, ProviderError, SelfTestError
from ...configs.errors import first_line
from ...configs.extras import cuda_of, extra_for, least_driver
from . import plugins
from .imports import import_onnxruntime
from .names import ORT_NAMES, canonical, ort_name, without_suffix
from .placement import Placement
from .wheels import Wheel, change_to, check_wheels, installed_wheels, missing_here

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Candidate:
    """One provider that was considered, and how it went."""

    provider: str
    chosen: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.provider}: {'chosen' if self.chosen else 'not chosen'}, {self.reason}"


@dataclass(frozen=True)
class ProviderChoice:
    """The provider that runs, and why it and no other."""

    provider: str
    candidates: tuple[Candidate, ...]
    placement: Placement | None = None
    """Where the nodes of the graph landed; None on the CPU, and where it is not known."""

    def __str__(self) -> str:
        placed = [str(self.placement)] if self.placement and self.placement.elsewhere else []
        return "; ".join([*map(str, self.candidates), *placed])


def resolve_ort_providers(name: str) -> list[str]:
    """Return what to give `onnxruntime.InferenceSession` as its providers: the wanted one, then the CPU's.

    `auto` is CUDA where the installed ONNX Runtime has it, else DirectML, else the CPU. That a provider is built in
    does not mean that it starts: compare `session.get_providers()[0]` with the first of these.

    Raises:
        UsageError: ONNX Runtime knows no such provider.
        ProviderError: the installed ONNX Runtime is built without it, or there is none; the message has the remedy.

    """
    ort = import_onnxruntime()
    provider, available = canonical(name), ort.get_available_providers()
    if provider == "auto":
        provider = next(p for p in ("cuda", "dml", "cpu") if p == "cpu" or ORT_NAMES[p] in available)
    wanted = ort_name(provider)
    if wanted not in available:
        check_wheels(provider)  # more than the absence: the wheel may be there, overwritten
        found = f"onnxruntime {ort.__version__} has {', '.join(available)}"
        raise ProviderError(f"provider {provider} cannot run here: {found}", remedy=remedy(provider))
    return list(dict.fromkeys([wanted, "CPUExecutionProvider"]))


def choose(wanted: str, made_for: str | None, attempt: Callable[[str], _T]) -> tuple[_T, ProviderChoice]:
    """Take the provider that was named, or with `auto` the first that really runs.

    `auto` tries the provider that the package was made for, then CUDA, DirectML and the CPU. A package made for the
    CPU stays there: its format is not what the others are fast with.

    Args:
        wanted: a provider's name, or `auto`.
        made_for: the provider that the package says it was made for.
        attempt: loads the package on a provider and returns the result; raises RuntimeError where that fails.

    Raises:
        UsageError: there is no such provider.
        ProviderError: the named provider cannot run, or with `auto` none can; or a provider other than the CPU's is
            named, and wheels overwrite each other.

    """
    wanted = canonical(wanted)
    if wanted != "auto":
        if wanted != "cpu":
            check_wheels(wanted)
        try:
            return attempt(wanted), ProviderChoice(wanted, (Candidate(wanted, True, "it was asked for"),))
        except RuntimeError as error:
            raise ProviderError(
                f"provider {wanted} cannot run here: {_why(wanted, error)}", remedy=remedy(wanted)
            ) from error
    tried: list[Candidate] = []
    for provider in _order(made_for):
        try:
            result = attempt(provider)
        except RuntimeError as error:
            tried.append(Candidate(provider, False, _why(provider, error)))
            continue
        reason = "the package was made for it" if provider == made_for else "it runs the package"
        return result, ProviderChoice(provider, (*tried, Candidate(provider, True, reason)))
    raise ProviderError(
        f"no provider can run this package: {'; '.join(map(str, tried))}", remedy="see: phi3-onnx doctor"
    )


@contextmanager
def refusals(*, goes_on: bool) -> Iterator[None]:
    """Turn a refusal of ours into what `choose` takes for a reason to try the next provider, where it may go on.

    Raises:
        RuntimeError: what was done within raised ProviderError or PackageError, and there is another provider to try.

    """
    try:
        yield
    except (ProviderError, PackageError) as error:
        if not goes_on:
            raise
        if isinstance(error, SelfTestError):  # wrong answers are worth a line wherever `auto` ends
            _LOG.warning("warning: %s", error)
        raise RuntimeError(str(error)) from error


def _why(provider: str, error: BaseException) -> str:
    found = installed_wheels()
    extra = None if isinstance(error.__cause__, SelfTestError) else extra_for(provider)  # such a provider did run
    if extra and found and not extra.wheels & {wheel.name for wheel in found}:
        names = " and ".join(f"{wheel.name} {wheel.version}" for wheel in found)
        return f"the installed {names} are built without it"
    return first_line(error)


def _order(made_for: str | None) -> list[str]:
    if made_for in (None, "cpu"):
        return ["cpu"]
    return list(dict.fromkeys([made_for, "cuda", "dml", "cpu"]))


def remedy(provider: str) -> str:
    """Return what makes a provider run here, as the end of an error message: most often one pip command."""
    if any(without_suffix(name) == provider for name in plugins.providers()):
        return "look at the notes of its library, or take another --provider"
    extra = extra_for(provider)
    if extra is None:
        return (
            f"install the ONNX Runtime build that has {provider}, or name its plug-in (--provider-library "
            f"{provider.lower()}=PATH), or take another --provider"
        )
    if where := missing_here(provider):
        return where
    installed = installed_wheels()
    if installed and {wheel.name for wheel in installed} == extra.wheels:
        return _driver_advice(provider, installed)
    return change_to(extra, installed)


def _driver_advice(provider: str, installed: Sequence[Wheel]) -> str:
    if provider == "cuda":
        found = next(cuda for wheel in installed if (cuda := cuda_of(wheel.name, wheel.version)))
        return (
            f"the CUDA build is installed, so look at the driver (nvidia-smi; CUDA {found} needs {least_driver(found)} "
            "or later) and at the libraries (phi3-onnx doctor)"
        )
    if provider == "dml":
        return "the DirectML build is installed, so look at the GPU's driver (run: dxdiag)"
    return "run: phi3-onnx doctor"
