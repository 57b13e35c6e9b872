"""Variants: targets that were changed, and the names that tell them from published targets and from each other.

A variant is called after the published target it was made from and what was changed: `cpu-int4-rtn.gptq-block-128`.
No published name or alias has a dot, so a variant never has one of those, and each change has a word of its own, so two
variants never share a name.
"""

import json
import re
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

from .errors import UsageError
from .target import METHODS, Method, Quantization, Target, Thresholds, WeightScheme, published, targets

_DOT = "."
_OWN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
"""Lower case alone: folders whose names differ in case are one folder on Windows and macOS."""
_VARIANT_NAME = re.compile(_OWN_NAME.pattern + r"(\.[a-z0-9]([a-z0-9.-]{0,126}[a-z0-9])?)?")
_BUDGET = re.compile(r"[0-9.]+[a-z]+")


def identified(target: Target) -> Target:
    """Return a target under the name that is its own, without aliases that are not.

    A published target stays what it is. One with a published name that was changed in any way (thresholds included)
    gets a variant's name. A target with a name of its own keeps it, and its variants are told apart by a digest.

    Raises:
        UsageError: a name or an alias of its own cannot be the name of a folder everywhere.

    """
    name, dot, _ = target.name.partition(_DOT)
    if (base := published(name)) is not None:
        if _content(target) == _content(base):
            return base
        about = f"{base.name}, changed: {target.weights}"
        return replace(target, name=f"{base.name}{_DOT}{_changes(base, target)}", description=about, aliases=())
    aliases = tuple(alias for alias in target.aliases if published(alias) is None)
    for own in (name, *aliases):
        if not _OWN_NAME.fullmatch(own):
            raise UsageError(
                f"a target's name must be 1 to 63 lower-case letters, digits, hyphens and underscores, got {own!r}; "
                "give the target another name"
            )
    return replace(target, name=f"{name}{_DOT}{_digest(target)}" if dot else name, aliases=aliases)


def check_names(target: Target) -> Target:
    """Return a target if its name and aliases can be the names of folders, which those of a fetched manifest may not.

    Raises:
        UsageError: one cannot.

    """
    for name in (target.name, *target.aliases):
        if not isinstance(name, str) or not _VARIANT_NAME.fullmatch(name):
            raise UsageError(f"a target cannot be called {name!r}")
    return target


def folder_name(text: str) -> str:
    """Return a text as a name that a target of your own can have."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:63] or "unnamed"


def same_package(first: Target, second: Target) -> bool:
    """Return whether two targets are called the same and make the same package, however it is judged."""
    unjudged = [replace(target, description="", aliases=(), thresholds=Thresholds()) for target in (first, second)]
    return unjudged[0] == unjudged[1]


def with_quantization(
    target: Target,
    *,
    method: Method | None = None,
    bits: int | None = None,
    block_size: int | None = None,
    symmetric: bool | None = None,
) -> Target:
    """Return a target whose weights are quantized otherwise, under a variant's name; None leaves what the target says.

    A target without quantization gets int4, block 32, symmetric as the start, and the thresholds of a published int4
    target. Overrides by tensor name stay.

    Raises:
        UsageError: a value is out of range, or the target's weights are not quantized and no method is named.

    """
    changes = {"bits": bits, "block_size": block_size, "symmetric": symmetric}
    changes = {name: value for name, value in changes.items() if value is not None}
    if method is None and not changes:
        return target
    if method is not None and method not in METHODS:
        raise UsageError(f"unknown quantization method {method!r}; known: {', '.join(METHODS)}")
    if target.quantization is None and method is None:
        raise UsageError(f"target {target.name} keeps its weights in {target.io_dtype}; name a method with --quant")
    start = _as_quantized(target, method or "rtn")[1]
    return requantized(target, replace(start, method=method or start.method, weights=replace(start.weights, **changes)))


def requantized(target: Target, quantization: Quantization) -> Target:
    """Return a target whose weights are quantized so, under a variant's name where that changes it."""
    if quantization == target.quantization:
        return target
    name = target.name if _DOT in target.name else f"{target.name}{_DOT}"
    return identified(replace(_as_quantized(target, quantization.method)[0], name=name, quantization=quantization))


def _as_quantized(target: Target, method: Method) -> tuple[Target, Quantization]:
    """Return a target and its quantization; one without it gets a first one, and is judged as int4 packages are."""
    if target.quantization is not None:
        return target, target.quantization
    level = 4 if target.provider == "cpu" else 0
    eight = WeightScheme(8, 32, True)
    overrides = (("lm_head.weight", eight), ("model.embed_tokens.weight", eight))
    first = Quantization(method, WeightScheme(4, 32, True), level, overrides)
    alike = next(
        t for t in targets().values() if t.quantization and (t.quantization.method == "rtn") == (method == "rtn")
    )
    return replace(target, quantization=first, thresholds=alike.thresholds), first


def _changes(base: Target, target: Target) -> str:
    """Say what was changed in words that can be read back, and the rest, if there is any, as a digest."""
    words: list[str] = []
    now, said = target.quantization, None
    if now is not None:
        unquantized = base.quantization is None
        base, start = _as_quantized(base, now.method)
        words = _quantization_words(start, now, named=unquantized)
        said = replace(now, method=start.method, accuracy_level=start.accuracy_level, weights=start.weights)
    if _content(replace(target, quantization=said)) != _content(base):
        words.append(_digest(target))
    return "-".join(words)


def _quantization_words(start: Quantization, now: Quantization, *, named: bool) -> list[str]:
    old, new = start.weights, now.weights
    words = {
        now.method.replace("+", "-"): named or now.method != start.method,
        f"int{new.bits}": new.bits != old.bits,
        f"block-{new.block_size}": new.block_size != old.block_size,
        "symmetric" if new.symmetric else "asymmetric": new.symmetric != old.symmetric,
        f"acc-level-{now.accuracy_level}": now.accuracy_level != start.accuracy_level,
        # For the reader alone: what a budget was spent on is in the overrides, so in the digest.
        f"budget-{now.budget}": bool(now.budget and _BUDGET.fullmatch(now.budget)),
    }
    return [word for word, needed in words.items() if needed]


def _content(target: Target) -> dict[str, Any]:
    """Return what a target is, without what it is called."""
    table = asdict(target)
    for name in ("name", "description", "aliases"):
        del table[name]
    # A threshold of 2 is one of 2.0, in the digest too.
    table["thresholds"] = {key: value if value is None else float(value) for key, value in table["thresholds"].items()}
    return table


def _digest(target: Target) -> str:
    return sha256(json.dumps(_content(target), sort_keys=True).encode()).hexdigest()[:8]
