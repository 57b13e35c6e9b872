"""What an execution provider refuses or computes wrongly although it has a kernel for it. One entry each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ..graph.passes.edit import CONTRIB


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


def _always(_: ir.Node) -> bool:
    return True


def _ragged(node: ir.Node) -> bool:
    block = _integer(node, "block_size", 0)
    return block == 0 or _integer(node, "K", 0) % block != 0


def _rotates_a_part(node: ir.Node) -> bool:
    states = node.inputs[0]
    producer = states.producer() if states is not None else None
    return producer is not None and producer.op_type == "Split"


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
        "a block size in MatMulNBits that is not a power of two from 16 on",
        "cuda",
        "MatMulNBits",
        lambda node: (block := _integer(node, "block_size", 0)) < 16 or block & (block - 1) != 0,
        "CUDA's kernel has no other; take --block-size 32 or 128",
    ),
    # GenAI captures graphs on DirectML always, and refuses one that is not wholly there.
    Rule(
        "a GatherBlockQuantized, which DirectML does not have",
        "dml",
        "GatherBlockQuantized",
        _always,
        "store the embedding in float16 and look it up with Gather",
    ),
    Rule(
        "a MatMulNBits whose K is not a multiple of its block, which goes to the CPU",
        "dml",
        "MatMulNBits",
        _ragged,
        "take a block size that divides K",
    ),
    # Seen in onnxruntime-web 1.30: its WebGPU build falls back to kernels of its own WASM, which are fewer.
    Rule(
        "a GatherBlockQuantized, which a browser without WebGPU does not have",
        "webgpu",
        "GatherBlockQuantized",
        _always,
        "store the embedding in float16 and look it up with Gather",
    ),
    Rule(
        "a MatMulNBits whose K is not a multiple of its block, which was not tried on WebGPU",
        "webgpu",
        "MatMulNBits",
        _ragged,
        "take a block size that divides K",
    ),
    Rule(
        "a RotaryEmbedding of a part of a Split, which DirectML computes wrongly while it captures",
        "dml",
        "RotaryEmbedding",
        _rotates_a_part,
        "make queries, keys and values by products of their own",
    ),
)
"""Every known case: of CUDA what the wheels say and do in the dry run of tests/cuda, of DirectML what it did there."""

LAST_OPSETS: Mapping[str, int] = {"dml": 22}
"""The last opset whose operators a provider has: DirectML's last release is of ONNX Runtime 1.24.4."""
