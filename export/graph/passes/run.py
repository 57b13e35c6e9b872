"""Run passes in order, and say which one failed and what had run before it."""

import logging
from collections.abc import Callable, Sequence

import onnx_ir as ir

from ....configs import Phi3OnnxError

logger = logging.getLogger(__name__)

Pass = Callable[[ir.Model], int]
"""Changes a model in place and returns the number of places changed."""


class PassError(Phi3OnnxError):
    """A pass failed: a defect of this project or an architecture it does not know."""


def run_passes(model: ir.Model, passes: Sequence[tuple[str, Pass]]) -> None:
    """Run named passes one after the other, and log how many places each changed.

    Raises:
        PassError: a pass raised; the message names it and those that had run.

    """
    done: list[str] = []
    for name, rewrite in passes:
        try:
            changes = rewrite(model)
        except Exception as error:
            before = ", ".join(done) or "none"
            raise PassError(f"pass {name!r} failed (passes already run: {before}): {error}") from error
        done.append(name)
        logger.debug("pass %s: %d changes", name, changes)
