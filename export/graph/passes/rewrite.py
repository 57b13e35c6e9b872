"""Passes as `onnx_ir` runs them: in order, each with what it needs and what it leaves behind checked."""

from collections.abc import Callable, Sequence

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassManager, PassResult, PostconditionError, PreconditionError

from ....configs import Phi3OnnxError

Condition = Callable[[ir.Model], str | None]
"""Returns what is wrong with a model, or None."""


class PassError(Phi3OnnxError):
    """A pass failed: a defect of this project or an architecture it does not know."""


class Rewrite(InPlacePass):
    """A function that changes a model in place and returns the number of places changed, with its conditions."""

    def __init__(
        self,
        rewrite: Callable[[ir.Model], int],
        *,
        needs: Sequence[Condition] = (),
        leaves: Sequence[Condition] = (),
        name: str | None = None,
    ) -> None:
        """Take the function, what must hold before it and what must hold after it; its own name is the default."""
        super().__init__()
        self._rewrite, self._needs, self._leaves = rewrite, needs, leaves
        self.name = name or rewrite.__name__

    def __str__(self) -> str:
        return self.name

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError where the pass runs too early."""
        if problems := _problems(model, self._needs):
            raise PreconditionError(f"{self.name} runs too early: {problems}")

    def call(self, model: ir.Model) -> PassResult:
        """Run the function."""
        return PassResult(model, bool(self._rewrite(model)))

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError where the pass left something undone."""
        if problems := _problems(model, self._leaves):
            raise PostconditionError(f"{self.name} is not complete: {problems}")


def run_passes(model: ir.Model, passes: Sequence[Rewrite]) -> None:
    """Run passes one after the other.

    Raises:
        PassError: a pass or one of its conditions failed; the message names it and those that had run.

    """
    try:
        PassManager(passes)(model)
    except Exception as error:
        chain: list[str] = []
        cause: BaseException | None = error
        while cause is not None:
            chain.append(str(cause))
            cause = cause.__cause__
        raise PassError(": ".join(dict.fromkeys(chain))) from error


def _problems(model: ir.Model, conditions: Sequence[Condition]) -> str:
    return "; ".join(problem for condition in conditions if (problem := condition(model)))
