"""What goes into the validation matrix: targets, providers, and which of them must run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...configs import ProviderError, Target, UsageError, find_target, targets
from ...runtime.providers.choice import resolve_ort_providers
from ...runtime.providers.imports import import_onnxruntime
from ...runtime.providers.names import KNOWN, canonical
from ..parity.verify import STEPS


@dataclass(frozen=True)
class MatrixPlan:
    """What to put into the matrix."""

    targets: tuple[Target, ...]
    providers: tuple[str, ...]
    required: tuple[str, ...] = ()
    """Providers for which "not run" is a failure."""
    output: Path | None = None
    """Folder of the packages, one for each target; None is the store."""
    force: bool = False
    """Export again what is there."""
    steps: int = STEPS
    speed: bool = True


def plan_matrix(
    target_names: Sequence[str] = (),
    provider_names: Sequence[str] = (),
    required: Sequence[str] = (),
    *,
    output: Path | None = None,
    force: bool = False,
    steps: int = STEPS,
    speed: bool = True,
) -> MatrixPlan:
    """Choose targets and providers: by default every target, and every provider that one is for or that runs here.

    Raises:
        UsageError: a name is unknown.
        ProviderError: ONNX Runtime is not installed.

    """
    chosen = [find_target(name) for name in target_names] or list(targets().values())
    names = [_provider(name) for name in provider_names]
    needed = tuple(dict.fromkeys(_provider(name) for name in required))
    if not names:
        here = [name for name in KNOWN if not unavailable(name)]
        wanted = {*(target.provider for target in chosen), *here}
        names = [name for name in KNOWN if name in wanted]
    names = list(dict.fromkeys([*names, *needed]))
    return MatrixPlan(tuple(chosen), tuple(names), needed, output, force, steps, speed)


def _provider(name: str) -> str:
    short = canonical(name)
    if short == "auto":
        raise UsageError("a column of the matrix is one provider; name cpu, cuda or dml, not auto")
    return short


def unavailable(provider: str) -> str | None:
    """Return why ONNX Runtime here has not this provider; None where it has (which does not say that it starts)."""
    import_onnxruntime()  # its absence concerns everything, not one cell
    try:
        resolve_ort_providers(provider)
    except ProviderError as error:
        return str(error)
    return None
