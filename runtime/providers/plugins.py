"""Execution providers in plug-in libraries: OpenVINO, WebGPU, QNN, those of Windows ML, and others come so.

A library is named by the environment variable, which every process of this project reads when it first imports ONNX
Runtime; the command line's option adds to it. https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...configs import ProviderError, UsageError
from ...configs.extras import LIBRARIES_VARIABLE

_TAKEN = ("auto", "cpu", "cuda", "dml", "directml")


@dataclass(frozen=True)
class Library:
    """A library that is to be registered."""

    name: str
    """What `--provider` may call it; a provider in it may have another name of its own, which works as well."""
    path: Path

    def __str__(self) -> str:
        return f"the provider library {self.name} ({self.path})"


# What is registered in this process. ONNX Runtime and GenAI each hold a list of their own.
_registered: set[tuple[str, Library]] = set()
_providers: dict[Library, tuple[str, ...]] = {}


def parse_library(text: str) -> Library:
    """Return the library that `NAME=PATH` names.

    Raises:
        UsageError: it does not read so, the name belongs to another provider, or there is no such file.

    """
    name, separator, path = text.partition("=")
    name = name.strip().lower()
    if not (separator and name and path.strip()):
        raise UsageError(f"a provider library is named as NAME=PATH, got {text!r}")
    if name in _TAKEN:
        raise UsageError(f"a provider library cannot be called {name}, a wheel's own provider is; give it another")
    found = Path(path.strip()).expanduser().absolute()
    if not found.is_file():
        raise UsageError(f"the provider library {name} is not there: {found}; name the file its package installs")
    return Library(name, found)


def add_library(text: str) -> None:
    """Let this process, and those it starts, register one more library: `NAME=PATH`.

    Raises:
        UsageError: as `parse_library`.

    """
    library = parse_library(text)
    kept = [each for each in libraries() if each.name != library.name]
    os.environ[LIBRARIES_VARIABLE] = os.pathsep.join(f"{each.name}={each.path}" for each in (*kept, library))


def libraries() -> tuple[Library, ...]:
    """Return the libraries that the environment names.

    Raises:
        UsageError: as `parse_library`.

    """
    texts = os.environ.get(LIBRARIES_VARIABLE, "").split(os.pathsep)
    return tuple(parse_library(text) for text in texts if text.strip())


def find(name: str) -> Library | None:
    """Return the library of that name, in any spelling; None where none is called so."""
    return next((library for library in libraries() if library.name == name.lower()), None)


def register(module: Any) -> None:
    """Register every library in `onnxruntime` or `onnxruntime_genai`, once in a process.

    Raises:
        ProviderError: a library does not load, or the module takes none.

    """
    for library in libraries():
        if (module.__name__, library) in _registered:
            continue
        enter = getattr(module, "register_execution_provider_library", None)
        if enter is None:
            raise ProviderError(
                f"{library} needs a newer {module.__name__} than {module.__version__}, which takes no such libraries"
            )
        before = set(_names(module))
        try:
            enter(library.name, str(library.path))
        except Exception as error:  # the modules' own errors have no common base but this
            raise ProviderError(
                f"{library} does not load in {module.__name__} {module.__version__}: {' '.join(str(error).split())}; "
                "install the version of it that was made for this one"
            ) from error
        _registered.add((module.__name__, library))
        if hasattr(module, "get_ep_devices"):
            _providers[library] = tuple(name for name in dict.fromkeys(_names(module)) if name not in before)


def _names(module: Any) -> Iterable[str]:
    return [device.ep_name for device in module.get_ep_devices()] if hasattr(module, "get_ep_devices") else []


def providers() -> tuple[str, ...]:
    """Return ONNX Runtime's names of the providers that registered libraries brought."""
    return tuple(name for names in _providers.values() for name in names)


def is_registered(library: Library) -> bool:
    """Return whether ONNX Runtime has a library in this process."""
    return library in _providers


def provider_of(library: Library) -> str:
    """Return ONNX Runtime's name of the provider that a registered library brought.

    Raises:
        ProviderError: it brought none, or several.

    """
    names: tuple[str, ...] = _providers.get(library, ())
    if not names:
        raise ProviderError(
            f"{library} is registered and finds no device here: its hardware or its driver is missing; "
            "take another --provider"
        )
    name, *others = names
    if others:
        raise ProviderError(f"{library} has several providers; take one of them as --provider: {', '.join(names)}")
    return name


def add_to(options: Any, ort: Any, name: str, device: int | None) -> None:
    """Have a session run on a plug-in's provider.

    Args:
        options: the session's `onnxruntime.SessionOptions`.
        ort: the module `onnxruntime`.
        name: ONNX Runtime's name of the provider.
        device: number of the device, of those that the provider has; by default its first.

    Raises:
        ProviderError: it has no device of that number.

    """
    found = [each for each in ort.get_ep_devices() if each.ep_name == name]
    if (device or 0) >= len(found):
        raise ProviderError(f"{name} has {len(found)} devices, and no number {device}; take --device 0 or none")
    options.add_provider_for_devices([found[device or 0]], {})
