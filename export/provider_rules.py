"""What an execution provider refuses or computes wrongly although it has a kernel for it. One entry each."""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from .passes.edit import CONTRIB


@dataclass(frozen=True)
class Rule:
    """One such case."""

    name: str
    """What is wrong, as the beginning of an error message."""
    provider: str
    operator: str
    """Of ONNX Runtime's own domain."""
    broken: Callable[[ir.Node], bool]
    """Whether a node of that operator is such a case."""
    remedy: str

    def applies(self, node: ir.Node) -> bool:
        """Whether a node of any graph is such a case."""
        return (node.domain, node.op_type) == (CONTRIB, self.operator) and self.broken(node)


def _integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes.get_int(name, default)


def _has_input(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


_GATHER_ZERO_POINTS = 3

RULES: tuple[Rule, ...] = (
    Rule(
        "no zero points with 8-bit GatherBlockQuantized",
        "cuda",
        "GatherBlockQuantized",
        lambda node: _integer(node, "bits", 4) == 8 and not _has_input(node, _GATHER_ZERO_POINTS),
        "ONNX Runtime 1.24.4 to 1.28.0 takes 0 for 128 there; store zero points for it (plan_layout does so for CUDA)",
    ),
    Rule(
        "bits other than 2, 4 and 8 in MatMulNBits",
        "cuda",
        "MatMulNBits",
        lambda node: _integer(node, "bits", 4) not in (2, 4, 8),
        "CUDA's kernel has no other; take a weight scheme of 4 or 8 bits",
    ),
    Rule(
        "a block size in MatMulNBits that is no power of two from 16 on",
        "cuda",
        "MatMulNBits",
        lambda node: (block := _integer(node, "block_size", 0)) < 16 or block & (block - 1) != 0,
        "CUDA's kernel has no other; take --block-size 32 or 128",
    ),
)
"""Every known case: of CUDA what the wheels say and do in the dry run of tests/cuda."""
