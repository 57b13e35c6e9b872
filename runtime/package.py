"""What a package says of itself: our own, Microsoft's published folders, and those of the GenAI model builder."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..configs import Manifest, PackageError, find_package, read_manifest
from ..configs.files import read_json
from ..configs.manifest import MANIFEST_NAME, check_files
from ..configs.options import SAMPLING, Sampling

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
    table = read_json(path)
    try:
        model = table["model"]
        decoder = model["decoder"]
        eos = model.get("eos_token_id", [])
        contract = Contract(
            filename=decoder["filename"],
            inputs=decoder["inputs"],
            outputs=decoder["outputs"],
            num_layers=decoder["num_hidden_layers"],
            num_kv_heads=decoder["num_key_value_heads"],
            head_dim=decoder["head_size"],
            vocab_size=model["vocab_size"],
            context_length=model["context_length"],
            eos_token_ids=tuple(eos) if isinstance(eos, list) else (eos,),
        )
        _ = contract.past_names() + contract.present_names()  # both can miss their entries
    except (KeyError, TypeError, AttributeError) as error:
        raise PackageError(
            f"{path} does not describe a decoder with a KV cache: {error} is missing or wrong"
        ) from error
    return contract


def longrope_switch(package: Path) -> int | None:
    """Return the tokens up to which a LongRoPE package uses its short factors, from its `config.json`; else None."""
    try:
        config = read_json(package / "config.json")
    except PackageError:
        return None
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if (rope.get("rope_type") or rope.get("type")) not in ("longrope", "su"):
        return None
    switch = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    return int(switch) if switch else None


@dataclass(frozen=True)
class Package:
    """A package's folder and what its JSON files hold."""

    folder: Path
    manifest: Manifest | None
    """None for a package that phi3-onnx did not make."""
    genai: Mapping[str, Any]
    """The content of `genai_config.json`."""
    generation: Mapping[str, Any]
    """The content of `generation_config.json`; empty where there is none."""
    contract: Contract

    @property
    def name(self) -> str:
        """What to call it: model and target, or the folder's name."""
        return f"{self.manifest.model}/{self.manifest.target.name}" if self.manifest else self.folder.name

    @property
    def context_length(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.contract.context_length

    @cached_property
    def made_for(self) -> str | None:
        """The provider it was made for, by our name; None where the package does not say."""
        if self.manifest:
            return self.manifest.provider
        options = self.genai["model"]["decoder"].get("session_options", {}).get("provider_options", [])
        names = [name.lower() for entry in options for name in entry]
        return names[0] if names else "cpu"

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Every token that ends an answer, of both config files."""
        stated = self.generation.get("eos_token_id")
        stated = stated if isinstance(stated, list) else [] if stated is None else [stated]
        return frozenset((*self.contract.eos_token_ids, *stated))

    @cached_property
    def longrope_switch(self) -> int | None:
        """The most tokens for which the graph uses LongRoPE's short factors; None where it has but one set."""
        if (self.folder / "config.json").is_file():
            return longrope_switch(self.folder)
        switch = _GENAI_SWITCHES.get(self.genai["model"].get("type", ""))
        return switch if switch and self.context_length > switch else None

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one token takes, over all layers."""
        # A foreign graph is not read here; the model builder's rule is float16 wherever it is not for the CPU.
        half = self.manifest.io_dtype == "float16" if self.manifest else self.made_for != "cpu"
        size = 2 if half else 4
        return 2 * self.contract.num_layers * self.contract.num_kv_heads * self.contract.head_dim * size

    @cached_property
    def sampling(self) -> Sampling:
        """How the model's makers sample: greedy unless `generation_config.json` asks for sampling."""
        stated = self.generation or self.genai.get("search", {})
        draws = bool(stated.get("do_sample"))
        values = {
            name: option.kind(stated[name])
            for name, option in SAMPLING.items()
            if option.kind is not dict and stated.get(name) is not None and (draws or not option.draws)
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
    loaded = {file: read_json(folder / file, optional=True) for file in ("genai_config.json", "generation_config.json")}
    return Package(folder, manifest, loaded["genai_config.json"], loaded["generation_config.json"], contract)


def _missing(folder: Path, names: Iterable[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]
