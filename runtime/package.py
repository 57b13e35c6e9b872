"""What a package says of itself: our own, Microsoft's published folders, and those of the GenAI model builder."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..configs import Manifest, PackageError, find_package, read_manifest
from ..configs.fields import Fields
from ..configs.files import read_json
from ..configs.manifest import MANIFEST_NAME, check_files
from ..configs.options import SAMPLING, Sampling

_MOST_LAYERS, _MOST_HEADS = 1024, 16384
# GenAI's own rule for these model types, which foreign packages without a config.json leave us to know.
_GENAI_SWITCHES = {"phi3": 4096, "phimoe": 4096, "phi3small": 8192}


@dataclass(frozen=True)
class Contract:
    """What `genai_config.json` says about a package's graph."""

    filename: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    bos_token_id: int | None
    model_type: str
    sliding_window: Mapping[str, Any] | None
    """The section that makes GenAI keep no more of the cache; None where there is none."""
    provider_options: tuple[tuple[str, Mapping[str, Any]], ...]
    """(provider, as GenAI calls it; its options)"""

    def past_names(self) -> list[str]:
        """Return the names of the graph's KV inputs: key and value of each layer in turn."""
        return self._names(self.inputs, "past_key_names", "past_value_names")

    def present_names(self) -> list[str]:
        """Return the names of the graph's KV outputs, in the order of `past_names`."""
        return self._names(self.outputs, "present_key_names", "present_value_names")

    def _names(self, table: Mapping[str, str], key: str, value: str) -> list[str]:
        return [table[name].replace("%d", str(i)) for i in range(self.num_layers) for name in (key, value)]


def read_contract(package: Path) -> Contract:
    """Read the `genai_config.json` of a package, ours or anyone's.

    Raises:
        PackageError: there is none, or it does not describe one decoder with a KV cache.

    """
    path = package / "genai_config.json"
    if not path.is_file():
        raise PackageError(f"{package} has no genai_config.json: not a package")
    return _contract(Fields(read_json(path), str(path)))


def _contract(genai: Fields) -> Contract:
    model = genai.fields("model")
    decoder = model.fields("decoder")
    contract = Contract(
        filename=decoder.file_name("filename"),
        inputs=decoder.texts("inputs"),
        outputs=decoder.texts("outputs"),
        num_layers=decoder.count("num_hidden_layers", most=_MOST_LAYERS),
        num_kv_heads=decoder.count("num_key_value_heads", most=_MOST_HEADS),
        head_dim=decoder.count("head_size", most=_MOST_HEADS),
        vocab_size=model.count("vocab_size"),
        context_length=model.count("context_length"),
        eos_token_ids=model.tokens("eos_token_id"),
        pad_token_id=model.token("pad_token_id"),
        bos_token_id=model.token("bos_token_id"),
        model_type=model.text("type", ""),
        sliding_window=decoder.fields("sliding_window").table if decoder.table.get("sliding_window") else None,
        provider_options=tuple(
            (name, entry.fields(name, optional=True).table)
            for entry in decoder.fields("session_options", optional=True).entries("provider_options")
            for name in entry.table
        ),
    )
    try:
        _ = contract.past_names() + contract.present_names()  # both can miss their entries
    except KeyError as error:
        raise PackageError(f"{decoder.where} does not describe a KV cache: {error} is missing") from error
    return contract


def longrope_switch(package: Path) -> int | None:
    """Return the tokens up to which a LongRoPE package uses its short factors, from its `config.json`; else None.

    Raises:
        PackageError: the file is damaged.

    """
    path = package / "config.json"
    config = Fields(read_json(path, optional=True), str(path))
    rope = config.fields("rope_scaling", optional=True)
    rope = rope if rope.table else config.fields("rope_parameters", optional=True)
    if (rope.table.get("rope_type") or rope.table.get("type")) not in ("longrope", "su"):
        return None
    key = "original_max_position_embeddings"
    stated = next((place for place in (config, rope) if place.table.get(key)), None)
    return stated.count(key) if stated else None


def weight_bytes(folder: Path) -> int:
    """Return the bytes of a package's graphs and weights."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and ".onnx" in path.name)


def layer_bytes(package: Path, contract: Contract) -> int:
    """Return the bytes of weights that one layer has, about: those of the embedding and the head are counted in."""
    size = sum(path.stat().st_size for path in package.glob("*.onnx.data"))
    return size // max(1, contract.num_layers)


@dataclass(frozen=True)
class Package:
    """A package's folder and what its JSON files hold."""

    folder: Path
    manifest: Manifest | None
    """None for a package that phi3-onnx did not make."""
    search: Fields
    """The section `search` of `genai_config.json`."""
    generation: Fields
    """The content of `generation_config.json`; empty where there is none."""
    contract: Contract

    @property
    def name(self) -> str:
        """What to call it: model and target, or the folder's name."""
        return f"{self.manifest.model}/{self.manifest.target.name}" if self.manifest else self.folder.name

    def bounded(self, context_length: int) -> "Package":
        """Return it with a shorter context."""
        return replace(self, contract=replace(self.contract, context_length=context_length))

    @property
    def context_length(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.contract.context_length

    @cached_property
    def made_for(self) -> str | None:
        """The provider it was made for, by our name; None where the package does not say."""
        if self.manifest:
            return self.manifest.provider
        options = self.contract.provider_options
        return options[0][0].lower() if options else "cpu"

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Every token that ends an answer, of both config files."""
        return frozenset((*self.contract.eos_token_ids, *self.generation.tokens("eos_token_id")))

    @cached_property
    def longrope_switch(self) -> int | None:
        """The most tokens for which the graph uses LongRoPE's short factors; None where it has but one set."""
        if (self.folder / "config.json").is_file():
            return longrope_switch(self.folder)
        switch = _GENAI_SWITCHES.get(self.contract.model_type)
        return switch if switch and self.context_length > switch else None

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one token takes, over all layers."""
        # A foreign graph is not read here; the model builder's rule is float16 wherever it is not for the CPU.
        half = self.manifest.io_dtype == "float16" if self.manifest else self.made_for != "cpu"
        size = 2 if half else 4
        return 2 * self.contract.num_layers * self.contract.num_kv_heads * self.contract.head_dim * size

    @cached_property
    def layer_bytes(self) -> int:
        """See the function of this name."""
        return layer_bytes(self.folder, self.contract)

    @cached_property
    def sampling(self) -> Sampling:
        """How the model's makers sample: greedy unless `generation_config.json` asks for sampling."""
        stated = self.generation if self.generation.table else self.search
        draws = stated.flag("do_sample", False)
        values = {
            name: option.kind(stated.number(name))
            for name, option in SAMPLING.items()
            if option.kind is not dict and stated.table.get(name) is not None and (draws or not option.draws)
        }
        return Sampling(**values) if draws else Sampling(**{**values, "temperature": 0.0})


def open_package(name: str | Path) -> Package:
    """Read the package of a folder or a store name, and check that its files are complete.

    Sizes are compared with the manifest where there is one; sha256 sums are not (`phi3-onnx verify --hashes` does).

    Raises:
        PackageError: there is no such package, or it is damaged.
        UsageError: the name fits several packages of the store.

    """
    folder = find_package(str(name))
    manifest = read_manifest(folder) if (folder / MANIFEST_NAME).is_file() else None
    if manifest:
        check_files(folder, manifest)
    contract = read_contract(folder)
    missing = _missing(folder, (contract.filename, "tokenizer.json"))
    if missing:
        raise PackageError(f"{folder} has no {' and no '.join(missing)}; export or download the package again")
    genai, generation = (
        Fields(read_json(folder / name, optional=True), str(folder / name))
        for name in ("genai_config.json", "generation_config.json")
    )
    package = Package(folder, manifest, genai.fields("search", optional=True), generation, contract)
    _ = package.end_tokens, package.sampling, package.longrope_switch  # damaged ones are said now, and not midway
    return package


def _missing(folder: Path, names: Iterable[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]
