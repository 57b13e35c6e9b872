"""Comparing a package with the model it was made from: parity, perplexity, tasks, speed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .parity.result import Verification, record
    from .parity.verify import checked

__all__ = ["Verification", "checked", "record"]

_HOMES = {"Verification": "parity.result", "record": "parity.result", "checked": "parity.verify"}


def __getattr__(name: str) -> Any:
    # torch is imported with the first name that needs it: the benchmark runs where torch is not installed.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
