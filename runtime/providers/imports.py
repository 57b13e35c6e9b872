"""Importing `onnxruntime` and `onnxruntime_genai`: telemetry off, plug-in libraries registered, CUDA found."""

import contextlib
import io
import logging
import os
from functools import cache
from types import ModuleType
from typing import Any

from ...configs import ProviderError
from ...configs.errors import first_line, is_out_of_memory
from ...configs.extras import GENAI, ONNXRUNTIME
from ...configs.releases import VersionError, check_versions
from . import plugins
from .wheels import describe_clash, install_for, installed_wheels

_LOG = logging.getLogger(__name__)
TELEMETRY_VARIABLE = "PHI3_ONNX_TELEMETRY"


def import_onnxruntime() -> Any:
    """Return the module `onnxruntime`, its telemetry off.

    Raises:
        ProviderError: it is not installed, or broken.

    """
    return _import(ONNXRUNTIME)


def import_genai(provider: str = "auto") -> Any:
    """Return the module `onnxruntime_genai`, its telemetry off.

    Args:
        provider: the one that was asked for, which the error's command is to give.

    Raises:
        ProviderError: it is not installed, or broken.

    """
    return _import(GENAI, provider)


def _import(name: str, provider: str = "auto") -> ModuleType:
    # Read by the native libraries when they are first loaded. Telemetry is on in GenAI unless this says otherwise.
    if os.environ.get(TELEMETRY_VARIABLE, "0") in ("", "0"):
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        check_versions(wheel.name for wheel in installed_wheels() if wheel.module == name)
    except VersionError as error:
        raise ProviderError(str(error)) from error
    try:
        module = __import__(name)
    except ImportError as error:
        if is_out_of_memory(error):
            raise ProviderError(
                f"{name} does not load, there is not enough memory: {first_line(error)}",
                remedy="free some, or raise the limit (ulimit -v)",
            ) from error
        missing = not any(wheel.module == name for wheel in installed_wheels())
        problem = "is not installed" if missing else f"does not load: {first_line(error)}"
        raise _import_error(name, problem, provider) from error
    if not hasattr(module, "InferenceSession") and not hasattr(module, "Model"):
        # What is left of a module when one of two wheels that shared it is uninstalled.
        raise _import_error(name, "is damaged, its files are gone", provider)
    if os.environ.get("ORT_DISABLE_TELEMETRY") == "1" and hasattr(module, "disable_telemetry_events"):
        module.disable_telemetry_events()
    plugins.register(module)
    return module


def _import_error(name: str, problem: str, provider: str) -> ProviderError:
    wheels = installed_wheels()
    clash = describe_clash(wheels)
    what = f"{name} {problem}{f' ({clash})' if clash else ''}"
    return ProviderError(what, remedy=install_for(provider, wheels))


@cache
def load_libraries(provider: str) -> None:
    """Load what a provider's build of ONNX Runtime needs and finds by itself only on the system's path.

    That is CUDA, where it comes as wheels (the extra `cuda`): GenAI and a session look for it beside the system's
    libraries alone. To be called before a session is made or GenAI loads a model on this provider.

    Args:
        provider: by this project's name or ONNX Runtime's.

    """
    if provider not in ("cuda", "CUDAExecutionProvider"):
        return
    preload = getattr(import_onnxruntime(), "preload_dlls", None)
    if preload is None:  # the CPU's wheel before 1.21
        return
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it misses; the provider's own error follows
        try:
            preload()
        except (OSError, RuntimeError) as error:
            said.write(first_line(error))
    for line in said.getvalue().splitlines():
        _LOG.debug("preload_dlls: %s", line)
