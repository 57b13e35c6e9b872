"""Run passes in order, and say which one failed and what had run before it."""

import logging
from collections.abc import Callable, Sequence

import onnx_ir as ir

from ...configs import Phi3OnnxError

logger = logging.getLogger(__name__)

Pass = Callable[[ir.Model], int]
"""Changes a model in place and returns the number of places changed."""


class PassError(Phi3OnnxError):
    """A pass failed: a defect of this project or an architecture it does not know."""


def run_passes(model: ir.Model, passes: Sequence[tuple[str, Pass]]) -> dict[str, int]:
    """Run named passes one after the other and return how many places each changed.

    Raises:
        PassError: a pass raised; the message names it and those that had run.

    """
    changes: dict[str, int] = {}
    for name, rewrite in passes:
        try:
            changes[name] = rewrite(model)
        except Exception as error:
            before = ", ".join(changes) or "none"
            raise PassError(f"pass {name!r} failed (passes already run: {before}): {error}") from error
        logger.debug("pass %s: %d changes", name, changes[name])
    return changes
