"""A PEFT adapter's `adapter_config.json`: what was trained and how it is scaled, as PEFT itself reads it.

Sources: LoRA (arXiv:2106.09685), rank-stabilized LoRA (arXiv:2312.03732), DoRA (arXiv:2402.09353); PEFT's
`LoraConfig`, `check_target_module_exists` and `get_pattern_key` (0.21).
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ....configs.errors import SourceError
from ....configs.fields import shown
from ..problems import summarize
from .expressions import check_expression

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MOST = 1 << 30
"""No rank and no alpha is that large."""
MERGE_WITH_PEFT = "merge it with PEFT (merge_and_unload, then save_pretrained) and export that folder"

# How A and B start out does not matter afterwards, unless the model's own weights were changed along with it.
_KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")
_REFUSED: Mapping[str, str] = {
    "fan_in_fan_out": "its weights lie transposed, Phi-3's do not",
    "lora_bias": "Phi-3's layout has no biases",
    "layer_replication": "it repeats layers, which makes another model",
    "target_parameters": "it changes bare parameters",
    "alora_invocation_tokens": "it acts after certain tokens only",
    "megatron_config": "it is for Megatron's layers",
    "use_qalora": "a variant of LoRA",
    "use_bdlora": "a variant of LoRA",
    "arrow_config": "a variant of LoRA",
    "kasa_config": "a variant of LoRA",
    "monteclora_config": "a variant of LoRA",
    "velora_config": "a variant of LoRA",
}


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA or DoRA adapter's settings. Modules are named as in the model, such as `model.layers.0.mlp.down_proj`."""

    base_model: str | None
    """What it was trained on: a hub id, or a folder of another machine."""
    revision: str | None
    """Of `base_model`."""
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    """Regular expression of the end of a module's name -> its rank, where that is not `rank`."""
    alpha_pattern: Mapping[str, float]
    rank_stabilized: bool
    dora: bool
    target_modules: str | tuple[str, ...]
    """A regular expression of whole names, `all-linear`, or ends of names."""
    exclude_modules: str | tuple[str, ...]
    layers_to_transform: tuple[int, ...]
    """Indices of the only layers that have an adapter; empty for all of them."""
    layers_pattern: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    """Modules that were trained as a whole."""
    token_indices: Mapping[str, tuple[int, ...]]
    """End of a module's name -> the tokens whose rows were trained as a whole."""
    ties_weights: bool
    """Whether a tied head shares what was trained of the embedding."""

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's A and B."""
        return self.rank_pattern.get(_pattern_key(self.rank_pattern, module), self.rank)

    def scaling_of(self, module: str) -> float:
        """Return what B @ A is multiplied with: alpha / rank, or alpha / sqrt(rank) where it is rank-stabilized."""
        alpha = self.alpha_pattern.get(_pattern_key(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rank_stabilized else alpha / rank

    def targets(self, matrices: Collection[str]) -> set[str]:
        """Return those of a model's modules that have an A and a B."""
        return {module for module in matrices if self._is_target(module)}

    def saves(self, module: str) -> bool:
        """Return whether a module was trained as a whole."""
        return any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.modules_to_save)

    def tokens_of(self, module: str) -> tuple[int, ...]:
        """Return the tokens whose rows of a module were trained as a whole, in the order in which they are stored."""
        return next((tokens for name, tokens in self.token_indices.items() if _names((name,), module)), ())

    def _is_target(self, module: str) -> bool:
        if _names(self.exclude_modules, module) or self.saves(module):
            return False
        if isinstance(self.target_modules, str) and self.target_modules.lower() == "all-linear":
            return module.startswith("model.layers.")
        return _names(self.target_modules, module) and self._in_layers(module)

    def _in_layers(self, module: str) -> bool:
        if not self.layers_to_transform:
            return True
        if not self.layers_pattern:
            found = re.match(r".*?\.[^.]*\.(\d+)\.", module)
        else:
            tried = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in self.layers_pattern)
            found = next(filter(None, tried), None)
        return found is not None and int(found[1]) in self.layers_to_transform


def parse_adapter_config(table: Mapping[str, Any], where: str) -> AdapterConfig:
    """Read the content of an `adapter_config.json`.

    Raises:
        SourceError: the adapter is of a kind that cannot be merged here, or a value makes no sense.

    """
    kind = table.get("peft_type")
    if kind != "LORA":
        raise SourceError(
            f"{where}: adapters of peft_type {kind!r} cannot be merged here (supported: LORA, DoRA included); "
            f"{MERGE_WITH_PEFT}"
        )
    problems = [f"{key} ({why})" for key, why in _REFUSED.items() if table.get(key)]
    if (bias := table.get("bias", "none")) != "none":
        problems.append(f"bias={bias!r} (Phi-3's layout has no biases)")
    start = table.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _KEEPS_BASE and start.lower() not in ("true", "false"):
        problems.append(f"init_lora_weights={start!r} (it changes the model's own weights too)")
    if problems:
        raise SourceError(f"{where}: not supported here: {summarize(problems)}; {MERGE_WITH_PEFT}")
    return _Reader(table, where).config()


@dataclass(frozen=True)
class _Reader:
    table: Mapping[str, Any]
    where: str

    def config(self) -> AdapterConfig:
        config = AdapterConfig(
            base_model=self._text("base_model_name_or_path"),
            revision=self._text("revision"),
            rank=int(self._positive("r", self.table.get("r"), whole=True)),
            alpha=self._positive("lora_alpha", self.table.get("lora_alpha")),
            rank_pattern={k: int(v) for k, v in self._pattern("rank_pattern", whole=True).items()},
            alpha_pattern=self._pattern("alpha_pattern"),
            rank_stabilized=bool(self.table.get("use_rslora")),
            dora=bool(self.table.get("use_dora")),
            target_modules=self._modules("target_modules"),
            exclude_modules=self._modules("exclude_modules"),
            layers_to_transform=self._layers(),
            layers_pattern=self._list("layers_pattern"),
            modules_to_save=self._list("modules_to_save"),
            token_indices=self._tokens(),
            ties_weights=bool(self.table.get("ensure_weight_tying")),
        )
        self._check_expressions(config)
        return config

    def _fail(self, key: str, expected: str) -> SourceError:
        return SourceError(f"{self.where}: {key} must be {expected}, got {shown(self.table.get(key))}")

    def _text(self, key: str) -> str | None:
        value = self.table.get(key)
        return value if isinstance(value, str) and value else None

    def _positive(self, key: str, value: Any, *, whole: bool = False) -> float:
        kinds = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= _MOST:
            raise self._fail(key, "a positive whole number" if whole else "a positive number")
        return value

    def _pattern(self, key: str, *, whole: bool = False) -> dict[str, float]:
        value = self.table.get(key) or {}
        if not isinstance(value, dict):
            raise self._fail(key, "an object of names and numbers")
        return {name: self._positive(key, number, whole=whole) for name, number in value.items()}

    def _modules(self, key: str) -> str | tuple[str, ...]:
        value = self.table.get(key)
        return value if isinstance(value, str) else self._list(key)

    def _list(self, key: str) -> tuple[str, ...]:
        value = self.table.get(key)
        if isinstance(value, str):
            return (value,) if value else ()
        if value is not None and (not isinstance(value, list) or not all(isinstance(name, str) for name in value)):
            raise self._fail(key, "a list of names")
        return tuple(value or ())

    def _layers(self) -> tuple[int, ...]:
        value = self.table.get("layers_to_transform")
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(index, int) and not isinstance(index, bool) for index in values):
            raise self._fail("layers_to_transform", "a list of layer indices")
        return tuple(values)

    def _tokens(self) -> dict[str, tuple[int, ...]]:
        key = "trainable_token_indices"
        value = self.table.get(key) or {}
        by_module = value if isinstance(value, dict) else {"embed_tokens": value}
        for indices in by_module.values():
            numbers = isinstance(indices, list) and all(type(index) is int and index >= 0 for index in indices)
            if not numbers or len(set(indices)) != len(indices):
                raise self._fail(key, "lists of token ids, each once")
        return {name: tuple(indices) for name, indices in by_module.items()}

    def _check_expressions(self, config: AdapterConfig) -> None:
        wholes = (config.target_modules, config.exclude_modules)
        patterns = [pattern for pattern in wholes if isinstance(pattern, str)]
        patterns += [*config.rank_pattern, *config.alpha_pattern, *config.layers_pattern, *config.modules_to_save]
        for pattern in patterns:
            try:
                check_expression(pattern)
            except re.error as error:
                problem = f"{pattern!r:.200} is not a regular expression that can be used: {error}"
                raise SourceError(f"{self.where}: {problem}") from error


def _names(modules: str | tuple[str, ...], module: str) -> bool:
    if isinstance(modules, str):
        return re.fullmatch(modules, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in modules)


def _pattern_key(patterns: Mapping[str, object], module: str) -> str:
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)
