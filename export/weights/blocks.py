"""Blocks that divide K, for providers whose MatMulNBits takes no others."""

import re
from dataclasses import replace

from ...configs import ModelConfig, Target, UsageError, WeightScheme
from ...configs.target import BLOCK_SIZES
from .layout import EMBEDDING


def fit_blocks(config: ModelConfig, target: Target) -> tuple[Target, dict[str, WeightScheme]]:
    """Give each matrix the largest block, of at most its scheme's size, that divides its K.

    Returns:
        The target with overrides for the matrices whose block had to change, and these (tensor name or pattern ->
        scheme). A target that does not ask for it comes back as it was.

    Raises:
        UsageError: K of a matrix is a multiple of no block.

    """
    quantization = target.quantization
    if quantization is None or not target.whole_blocks:
        return target, {}
    fitted: dict[str, WeightScheme | None] = {}
    for name, shape in config.tensor_shapes().items():
        if len(shape) != 2 or (name == EMBEDDING and target.embedding == "gather" and not config.tie_embeddings):
            continue
        scheme = quantization.scheme_for(name)
        sizes = [size for size in BLOCK_SIZES if size <= scheme.block_size and shape[1] % size == 0]
        if not sizes:
            raise UsageError(
                f"target {target.name} needs blocks that divide K, and none of {', '.join(map(str, BLOCK_SIZES))} "
                f"divides the {shape[1]} columns of {name}; take a target for another provider"
            )
        fitted[name] = replace(scheme, block_size=max(sizes)) if max(sizes) != scheme.block_size else None
    changed = _by_pattern(fitted)
    overrides = (*changed.items(), *quantization.overrides)
    return replace(target, quantization=replace(quantization, overrides=overrides)), changed


def _by_pattern(fitted: dict[str, WeightScheme | None]) -> dict[str, WeightScheme]:
    """Name the matrices of all layers by one pattern where they are treated alike."""
    kinds: dict[str, set[WeightScheme | None]] = {}
    for name, scheme in fitted.items():
        kinds.setdefault(_pattern(name), set()).add(scheme)
    alike = {kind for kind, schemes in kinds.items() if len(schemes) == 1}
    names = ((_pattern(name) if _pattern(name) in alike else name, scheme) for name, scheme in fitted.items())
    return {name: scheme for name, scheme in names if scheme is not None}


def _pattern(name: str) -> str:
    return re.sub(r"\.layers\.\d+\.", ".layers.*.", name)
