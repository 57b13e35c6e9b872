"""Targets: what a package is made of, read from one TOML file each. Adding a target is adding a file."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from types import MappingProxyType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UsageError
from .fields import shown

IoDtype = Literal["float32", "float16"]
Provider = Literal["cpu", "cuda", "dml", "webgpu"]
Method = Literal["rtn", "imatrix", "awq", "gptq", "awq+gptq"]
Attention = Literal["packed", "separate"]
Embedding = Literal["quantized", "gather"]

METHODS: tuple[Method, ...] = get_args(Method)

_T = TypeVar("_T")

BLOCK_SIZES = (16, 32, 64, 128, 256)
_LARGEST = 1e300


@dataclass(frozen=True)
class WeightScheme:
    """How one weight matrix is quantized, in the terms of `com.microsoft::MatMulNBits`."""

    bits: Literal[4, 8]
    block_size: int
    """Weights along K that share one scale: 16, 32, 64, 128 or 256."""
    symmetric: bool
    """Without a zero point (the middle of the range stands for 0), or with one for each block."""

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise UsageError(f"bits must be 4 or 8, got {self.bits}")
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(f"block size must be one of {', '.join(map(str, BLOCK_SIZES))}, got {self.block_size}")

    def __str__(self) -> str:
        return describe_scheme(self.bits, self.block_size, self.symmetric)


def describe_scheme(bits: int, block_size: int, symmetric: bool) -> str:
    """Say how a weight matrix is quantized, such as `int4 block 32 symmetric`."""
    return f"int{bits} block {block_size} {'symmetric' if symmetric else 'asymmetric'}"


@dataclass(frozen=True)
class Quantization:
    """How a target's matrices are quantized: one scheme, and others for tensors whose name matches a pattern."""

    method: Method
    weights: WeightScheme
    accuracy_level: int = 0
    """`MatMulNBits` accuracy_level: 0 leaves the arithmetic to the kernel, 4 quantizes activations to int8."""
    overrides: tuple[tuple[str, WeightScheme], ...] = ()
    """(glob over checkpoint tensor names, scheme); the first match wins."""
    budget: str | None = None
    """What overrides for single matrices were fitted to, such as `105mb`; None where no budget was named."""

    @property
    def num_samples(self) -> int:
        """Calibration sequences that the method needs: mean squares of inputs settle far sooner than Gram matrices."""
        return 16 if self.method == "imatrix" else 128

    def scheme_for(self, tensor: str) -> WeightScheme:
        """Return the scheme of a checkpoint tensor such as `model.layers.0.mlp.down_proj.weight`."""
        for pattern, scheme in self.overrides:
            if fnmatchcase(tensor, pattern):
                return scheme
        return self.weights


@dataclass(frozen=True)
class Thresholds:
    """What verification accepts. A value of None is measured and reported, but judged by nothing."""

    max_abs_diff: float | None = None
    mean_kl: float | None = None
    """Mean over positions of KL(reference || package), in nats."""
    p99_kl: float | None = None
    top1_agreement: float | None = None
    """Smallest share of positions whose most likely token is the reference's, 0 to 1."""
    perplexity_ratio: float | None = None
    """Largest package perplexity / reference perplexity."""
    greedy_agreement: float | None = None
    """Smallest share of greedy tokens that the reference also ranks first in the same context, 0 to 1."""


@dataclass(frozen=True)
class Target:
    """One kind of package: for which provider, in which dtype, quantized how, and how close it has to be."""

    name: str
    description: str
    provider: Provider
    io_dtype: IoDtype
    """Dtype of logits, KV cache and everything that is not quantized."""
    aliases: tuple[str, ...] = ()
    opset: int = 21
    attention: Attention = "packed"
    """`packed`: fused QKV and rotary inside GroupQueryAttention; `separate`: q, k and v are matrices of their own, with
    RotaryEmbedding nodes."""
    position_ids: bool = False
    """Whether the graph takes `position_ids` (DirectML needs it). LongRoPE's factors then follow the largest of them,
    not the attention mask's width, which is the cache's whole capacity where a runtime captures the graph."""
    embedding: Embedding = "quantized"
    """`quantized`: GatherBlockQuantized, and a tied head shares its matrix; `gather`: a plain table in `io_dtype`, for
    providers without that operator. A tied head then has a quantized matrix beside it."""
    whole_blocks: bool = False
    """Whether the provider's MatMulNBits wants K to be a multiple of the block: others get smaller blocks."""
    norm_limit: float | None = None
    """Mean square of a row up to which the provider's float16 norms are right; those that may see more are computed in
    float32. None: any."""
    file_bytes: int | None = None
    """Most bytes of one data file, where a runtime cannot read larger ones; None: all weights are in one."""
    last_token_logits: bool = False
    """Whether the head runs on the last token only (logits of shape [batch, 1, vocab])."""
    quantization: Quantization | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def decodes_together(self) -> bool:
        """Whether its packages get a second graph that decodes several texts together: those with int8 activations.

        In float32 a matrix product of one row rounds otherwise than one of several: answers would depend on others.
        """
        level = self.quantization.accuracy_level if self.quantization else 0
        return self.provider == "cpu" and self.io_dtype == "float32" and level == 4

    @property
    def weights(self) -> str:
        """Say in a few words how the weights are stored, such as `int4 block 32 symmetric, rtn`."""
        if self.quantization is None:
            return self.io_dtype
        return f"{self.quantization.weights}, {self.quantization.method}"


def _build(kind: type[_T], table: Mapping[str, Any], where: str) -> _T:
    known = {f.name for f in fields(kind)}  # pyright: ignore[reportArgumentType]  # every caller passes a dataclass
    unknown = sorted(set(table) - known)
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    hints = get_type_hints(kind)
    if wrong := next((key for key, value in table.items() if not _fits(value, hints[key])), None):
        raise UsageError(f"{where}: {wrong} must be {_expected(hints[wrong])}, got {shown(table[wrong])}")
    try:
        return kind(**table)
    except (TypeError, UsageError) as error:
        raise UsageError(f"{where}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that a field's annotation names."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        inner = parts[0] if len(parts) == 2 and parts[1] is Ellipsis else Any
        return isinstance(value, tuple) and (inner is not str or all(isinstance(entry, str) for entry in value))
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
        return number and -_LARGEST <= value <= _LARGEST
    return isinstance(value, hint)


def _expected(hint: Any) -> str:
    """Say in words what an annotation asks for."""
    parts = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_expected, parts))
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return words.get(hint, "a table" if is_dataclass(hint) else "a list of texts")


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be a table, got {shown(value)}")
    return dict(value)


def parse_target(name: str, text: str) -> Target:
    """Read one target from the text of its TOML file.

    Raises:
        UsageError: the TOML is malformed, a key is unknown or missing, or a value is out of range.

    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"target {name}: not valid TOML: {error}") from error
    return target_of({"name": name, **table})


def target_of(table: Mapping[str, Any]) -> Target:
    """Return the target of a table such as `table_of` makes or a TOML file holds, with its `name`.

    Raises:
        UsageError: a key is unknown or missing, or a value is out of range.

    """
    table = dict(table)
    where = f"target {table.get('name', 'without a name')}"
    if (quantization := table.get("quantization")) is not None:
        quantization = _table(quantization, f"{where}, quantization")
        place = f"{where}, quantization.weights"
        weights = _build(WeightScheme, _table(quantization.pop("weights", {}), place), place)
        # An override names only what differs from the target's own scheme.
        base = {f.name: getattr(weights, f.name) for f in fields(weights)}
        overrides = tuple(
            (
                pattern,
                _build(WeightScheme, {**base, **_table(scheme, where)}, f"{where}, quantization.overrides.{pattern}"),
            )
            for pattern, scheme in _table(quantization.pop("overrides", {}), f"{where}, quantization.overrides").items()
        )
        table["quantization"] = _build(
            Quantization, {**quantization, "weights": weights, "overrides": overrides}, f"{where}, quantization"
        )
    place = f"{where}, thresholds"
    table["thresholds"] = _build(Thresholds, _table(table.get("thresholds", {}), place), place)
    aliases = table.get("aliases", ())
    if not isinstance(aliases, list | tuple):
        raise UsageError(f"{where}: aliases must be a list of texts, got {shown(aliases)}")
    table["aliases"] = tuple(aliases)
    return _build(Target, table, where)


def table_of(target: Target) -> dict[str, Any]:
    """Return all of a target as JSON values, which `target_of` reads."""
    table = asdict(target)
    if target.quantization is not None:
        # The first match wins, so a pattern that stands there twice has no second meaning.
        overrides = dict(reversed([(pattern, asdict(scheme)) for pattern, scheme in target.quantization.overrides]))
        patterns = dict.fromkeys(pattern for pattern, _ in target.quantization.overrides)
        table["quantization"]["overrides"] = {pattern: overrides[pattern] for pattern in patterns}
    return table


@cache
def targets() -> Mapping[str, Target]:
    """Return every target that ships with the project, by name, in the order in which they are listed to users."""
    folder = files(__package__ or "phi3_onnx.configs") / "targets"
    found = [
        parse_target(entry.name.removesuffix(".toml"), entry.read_text(encoding="utf-8"))
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    ]
    return MappingProxyType({target.name: target for target in found})


def published(name: str) -> Target | None:
    """Return the target that ships with the project under this name or alias; None where there is none."""
    return next((target for target in targets().values() if name in (target.name, *target.aliases)), None)


def find_target(name: str) -> Target:
    """Return the target of this name or alias.

    Raises:
        UsageError: no target is called so.

    """
    if (target := published(name)) is not None:
        return target
    if (base := published(name.partition(".")[0])) is not None:
        raise UsageError(
            f"{name!r} is a variant of {base.name}: name {base.name}, and what was changed with options such as --quant"
        )
    raise UsageError(f"unknown target {name!r}; known: {', '.join(targets())} (see: phi3-onnx targets)")
