"""Where an adapter's tensors belong in Phi-3's layout: rows that B @ A is added to, and rows that are replaced.

An adapter for q_proj acts on the first rows of Phi-3's qkv_proj, whichever of the two the checkpoint stores, so
adapters of Phi-3 and of its Llama-like twins fit both.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ....configs import ModelConfig
from ....configs.errors import SourceError
from ..fusion import fused_parts, split_parts
from ..problems import summarize
from ..safetensors_file import StoredTensor
from .config import MERGE_WITH_PEFT, AdapterConfig

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
_PREFIX = "base_model.model."
# The adapter's own name ("default") is left out by save_pretrained, but not by every trainer.
_LOW_RANK = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
)
_TOKENS = re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta(?:\.default)?")
_WHOLE = re.compile(r"(.+?)(\.base_layer|\.modules_to_save(?:\.default)?)?\.weight")
_COPY = ".original_module.weight"
"""A module as it was before training, which save_embedding_layers=True adds."""


@dataclass(frozen=True)
class LowRank:
    """Consecutive rows of one of Phi-3's tensors to which scaling * B @ A is added."""

    first_row: int
    rows: int
    a: str
    """Stored tensor, [rank, in features]."""
    b: str
    """Stored tensor, [rows, rank]."""
    scaling: float
    magnitude: str | None
    """For DoRA: the stored tensor of the norms that the rows of the sum are brought to, [rows]."""
    transposed: bool
    """For embeddings: B @ A is [in features, rows]; A is [rank, rows] and B [in features, rank]. DoRA's norms are then
    those of the columns, [in features]."""


@dataclass(frozen=True)
class Whole:
    """Consecutive rows of one of Phi-3's tensors that the adapter has itself."""

    first_row: int
    rows: int
    name: str


@dataclass(frozen=True)
class Tokens:
    """Single rows of one of Phi-3's tensors that the adapter has itself."""

    rows: tuple[int, ...]
    """In the order in which they are stored."""
    name: str


Change = Whole | LowRank | Tokens


@dataclass(frozen=True)
class Changes:
    """What an adapter does to a model."""

    config: ModelConfig
    """The model's, with its head untied from the embedding where the adapter changes only one of them."""
    by_tensor: Mapping[str, tuple[Change, ...]]
    """Phi-3's tensor name -> what happens to its rows, in order."""
    summary: str
    """In words, such as `LoRA, rank 16, 64 matrices`."""


@dataclass(frozen=True)
class _Place:
    tensor: str
    first_row: int
    shape: tuple[int, ...]


def find_changes(adapter: AdapterConfig, stored: Mapping[str, StoredTensor], model: ModelConfig, where: str) -> Changes:
    """Find the place of each of an adapter's tensors, and check that all of them are there and fit.

    Args:
        adapter: Its settings.
        stored: Its tensors.
        model: What it is for.
        where: What to call it in messages.

    Raises:
        SourceError: it is incomplete, or made for another model; the message names every problem.

    """
    return _Finder(adapter, stored, model, where).find()


class _Finder:
    def __init__(
        self, adapter: AdapterConfig, stored: Mapping[str, StoredTensor], model: ModelConfig, where: str
    ) -> None:
        self._adapter, self._stored, self._model, self._where = adapter, stored, model, where
        self._low_rank: dict[str, dict[str, str]] = {}  # module -> kind of tensor -> stored name
        self._whole: dict[str, str] = {}
        self._tokens: dict[str, str] = {}
        self._problems: list[str] = []
        for name in stored:
            self._sort(name)
        self._shares_head = model.tie_embeddings and adapter.ties_weights and EMBEDDING in self._modules
        if self._shares_head:  # the head's tensors, where they are stored too, are the embedding's
            self._low_rank.pop(HEAD, None)
            self._whole.pop(HEAD, None)
        self._places = self._layout()

    def _sort(self, stored_name: str) -> None:
        name = stored_name.removeprefix(_PREFIX)
        if name.endswith(_COPY):
            return
        if found := _LOW_RANK.fullmatch(name):
            self._low_rank.setdefault(found[1], {})[found[2]] = stored_name
        elif found := _TOKENS.fullmatch(name):
            self._tokens.setdefault(found[1], stored_name)
        elif found := _WHOLE.fullmatch(name):
            self._whole.setdefault(found[1], stored_name)
        else:
            self._problems.append(f"{stored_name} has no place in Phi-3's layout")

    @property
    def _modules(self) -> set[str]:
        return {*self._low_rank, *self._whole, *self._tokens}

    def _layout(self) -> dict[str, _Place]:
        """Return the modules of the layout that the adapter was made for, Phi-3's or Llama's."""
        fused, split = _places(self._model, split=False), _places(self._model, split=True)
        return split if self._modules & (split.keys() - fused.keys()) else fused

    def find(self) -> Changes:
        if not self._modules:
            raise SourceError(f"{self._where} holds no adapter: none of its tensors is LoRA's; {MERGE_WITH_PEFT}")
        self._check_vocabulary()
        self._check_modules()
        changes: dict[str, list[Change]] = {}
        for module, place in self._places.items():
            found = [*self._whole_of(module, place), *self._low_rank_of(module, place), *self._tokens_of(module, place)]
            changes.setdefault(place.tensor, []).extend(found)
        if self._problems:
            made_for = f" (made for {self._adapter.base_model})" if self._adapter.base_model else ""
            raise SourceError(f"{self._where} does not fit the model{made_for}: {summarize(self._problems)}")
        config = self._settle_tied(changes)
        by_tensor = {tensor: tuple(found) for tensor, found in changes.items() if found}
        return Changes(config, by_tensor, self._summary())

    def _check_vocabulary(self) -> None:
        for module in (EMBEDDING, HEAD):
            if (last := max(self._adapter.tokens_of(module), default=-1)) >= self._model.vocab_size:
                raise SourceError(
                    f"{self._where}: token {last} was trained, the model has {self._model.vocab_size}: the vocabulary "
                    f"was resized for the training; {MERGE_WITH_PEFT}"
                )
            kinds = self._low_rank.get(module, {})
            by_axis = {0: [self._whole.get(module), kinds.get("lora_B")], 1: [kinds.get("lora_embedding_A")]}
            for axis, names in by_axis.items():
                for name in filter(None, names):
                    shape = self._stored[name].shape
                    if len(shape) > axis and shape[axis] != self._model.vocab_size:
                        raise SourceError(
                            f"{self._where}: {name} has {shape[axis]} tokens, the model {self._model.vocab_size}: the "
                            f"vocabulary was resized for the training; {MERGE_WITH_PEFT}"
                        )

    def _check_modules(self) -> None:
        """Compare the modules that have tensors with those that adapter_config.json names."""
        matrices = [module for module, place in self._places.items() if len(place.shape) == 2]
        shared = {HEAD} if self._shares_head else set[str]()
        wanted = self._adapter.targets(matrices) - shared
        self._problems += [
            f"{module} is not a module of the model" for module in sorted(self._modules - self._places.keys())
        ]
        if self._low_rank and not wanted:
            self._problems.append(f"target_modules {self._adapter.target_modules!r} names no module of the model")
            return
        for module in self._low_rank:
            if module in self._places and module not in wanted:
                self._problems.append(f"{module} has an adapter, but is none of the target_modules")
        if missing := sorted(wanted - self._low_rank.keys()):
            self._problems.append(
                f"no tensors for {len(missing)} of {len(wanted)} target modules, such as {missing[0]}"
            )
        trained = {module for module in self._places if self._adapter.tokens_of(module)}
        # A tied head has the embedding's tokens, and no tensor of its own for them.
        follows = {HEAD} if self._tokens_are_tied else set[str]()
        for module in sorted((trained - follows) ^ self._tokens.keys()):
            has = "has no tensor of" if module in trained else "has a tensor of tokens, but is none of"
            self._problems.append(f"{module} {has} trainable_token_indices")
        saved = {module for module in self._places if self._adapter.saves(module)} - shared - self._whole.keys()
        self._problems += [f"no tensor for {module}, one of modules_to_save" for module in sorted(saved)]

    def _whole_of(self, module: str, place: _Place) -> Iterator[Whole]:
        name = self._whole.get(module)
        if name is not None and self._fits(name, place.shape):
            yield Whole(place.first_row, place.shape[0], name)

    def _tokens_of(self, module: str, place: _Place) -> Iterator[Tokens]:
        name, rows = self._tokens.get(module), self._adapter.tokens_of(module)
        if name is not None and self._fits(name, (len(rows), *place.shape[1:])):
            if max(rows) >= place.shape[0]:
                self._problems.append(f"{module} has {place.shape[0]} rows, row {max(rows)} was trained")
            if module in self._low_rank or module in self._whole:
                self._problems.append(f"{module} was trained in two ways; {MERGE_WITH_PEFT}")
            yield Tokens(rows, name)

    @property
    def _tokens_are_tied(self) -> bool:
        """Whether what was trained of the embedding's tokens is a tied head's too, which PEFT lets it be."""
        embedding, head = self._adapter.tokens_of(EMBEDDING), self._adapter.tokens_of(HEAD)
        return self._model.tie_embeddings and bool(embedding) and (not head or head == embedding)

    def _low_rank_of(self, module: str, place: _Place) -> Iterator[LowRank]:
        kinds = self._low_rank.get(module)
        if kinds is None or len(place.shape) != 2:
            return
        transposed = module == EMBEDDING
        prefix = "lora_embedding_" if transposed else "lora_"
        needed = [f"{prefix}A", f"{prefix}B", *(["lora_magnitude_vector"] if self._adapter.dora else [])]
        self._problems += [f"{module} has no {kind}" for kind in needed if kind not in kinds]
        self._problems += [f"{kinds[kind]} has no place beside {needed[1]}" for kind in kinds if kind not in needed]
        if transposed and self._adapter.dora and self._shares_head:
            self._problems.append(f"DoRA of {module} has other norms than that of the head tied to it")
        if kinds.keys() != set(needed):
            return
        rows, columns = place.shape
        rank = self._adapter.rank_of(module)
        shapes = [(rank, rows), (columns, rank)] if transposed else [(rank, columns), (rows, rank)]
        norms = (columns,) if transposed else (rows,)
        fits = [self._fits(kinds[kind], shape) for kind, shape in zip(needed, [*shapes, norms], strict=False)]
        if all(fits):
            a, b, *magnitude = (kinds[kind] for kind in needed)
            scaling = self._adapter.scaling_of(module)
            yield LowRank(place.first_row, rows, a, b, scaling, next(iter(magnitude), None), transposed)

    def _fits(self, name: str, shape: tuple[int, ...]) -> bool:
        tensor = self._stored[name]
        if tensor.shape != shape:
            self._problems.append(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")
        elif not tensor.is_float:
            self._problems.append(f"{name} is stored as {tensor.dtype}, expected floating point")
        else:
            return True
        return False

    def _settle_tied(self, changes: dict[str, list[Change]]) -> ModelConfig:
        """Untie a head that is the embedding, if one of the two was trained: that does not touch the other."""
        if not self._model.tie_embeddings or self._shares_head:
            return self._model
        if self._tokens_are_tied:
            if len(changes[f"{EMBEDDING}.weight"]) + len(changes[f"{HEAD}.weight"]) > 1:
                raise SourceError(
                    f"{self._where}: tokens of the tied {EMBEDDING} and more of {HEAD} were trained; {MERGE_WITH_PEFT}"
                )
            return self._model
        embedding, head = changes[f"{EMBEDDING}.weight"], changes[f"{HEAD}.weight"]
        # A whole embedding that is none of modules_to_save is the model's own, stored again (save_embedding_layers).
        own = [change for change in embedding if isinstance(change, Whole) and not self._adapter.saves(EMBEDDING)]
        if embedding == own and not head:
            return self._model
        changes[f"{HEAD}.weight"] = [*own, *head]
        return replace(self._model, tie_embeddings=False)

    def _summary(self) -> str:
        kind = "DoRA" if self._adapter.dora else "LoRA"
        ranks = sorted({self._adapter.rank_of(module) for module in self._low_rank})
        parts = [f"{kind}, rank {'/'.join(map(str, ranks))}, {len(self._low_rank)} matrices"] if ranks else []
        if self._whole:
            named = sorted({module.rpartition(".")[2] for module in self._whole})
            parts.append(f"{', '.join(named)} replaced")
        parts += [
            f"{len(self._adapter.tokens_of(module))} tokens of {module.rpartition('.')[2]} replaced"
            for module in sorted(self._tokens)
        ]
        return "; ".join(parts)


def _places(model: ModelConfig, *, split: bool) -> dict[str, _Place]:
    untied = replace(model, tie_embeddings=False)
    places: dict[str, _Place] = {}
    for tensor, parts in (split_parts(untied) if split else fused_parts(untied)).items():
        first = 0
        for part in parts:
            places[part.name.removesuffix(".weight")] = _Place(tensor, first, part.shape)
            first += part.shape[0]
    return places
