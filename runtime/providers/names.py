"""The names of execution providers: this project's, and ONNX Runtime's."""

from ...configs import UsageError
from . import plugins
from .imports import import_onnxruntime

KNOWN = ("cpu", "cuda", "dml")
"""The providers that targets are made for, and this project's names of them."""
ORT_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "dml": "DmlExecutionProvider"}
_SUFFIX = "executionprovider"


def canonical(name: str) -> str:
    """Return this project's name of a provider: `cpu`, `cuda`, `dml`, `auto`, or ONNX Runtime's own without its suffix.

    Raises:
        UsageError: ONNX Runtime knows no such provider.

    """
    short = name.lower().removesuffix(_SUFFIX)
    if short in (*KNOWN, "auto"):
        return short
    if short == "directml":
        return "dml"
    known = _every_ort_provider()
    if library := plugins.find(short):
        return without_suffix(plugins.provider_of(library))
    for ort_name in known:
        if without_suffix(ort_name).lower() == short:
            return without_suffix(ort_name)
    others = sorted(without_suffix(ort_name) for ort_name in known if ort_name not in ORT_NAMES.values())
    raise UsageError(f"unknown provider {name!r}; known: auto, {', '.join(KNOWN)}; and by name {', '.join(others)}")


def ort_name(provider: str) -> str:
    """Return ONNX Runtime's name of a provider, such as `CUDAExecutionProvider` for `cuda`."""
    provider = canonical(provider)
    if provider in ORT_NAMES:
        return ORT_NAMES[provider]
    # A plug-in library calls its providers as it likes.
    return next(
        (name for name in plugins.providers() if without_suffix(name) == provider), f"{provider}ExecutionProvider"
    )


def without_suffix(name: str) -> str:
    """Return ONNX Runtime's name of a provider without `ExecutionProvider`."""
    return name[: -len(_SUFFIX)] if name.lower().endswith(_SUFFIX) else name


def _every_ort_provider() -> list[str]:
    # Those that any ONNX Runtime has a name for, and those that this one has beyond them (plugins).
    ort = import_onnxruntime()
    return list(dict.fromkeys([*ort.get_all_providers(), *ort.get_available_providers()]))
