"""What a package says of itself: our own, Microsoft's published folders, and those of the GenAI model builder."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..configs import Manifest, PackageError, find_package, read_manifest
from ..configs.manifest import MANIFEST_NAME, check_files
from .decoding.sampling import Sampling
from .engines.session import Contract, longrope_switch, read_contract
from .files import read_json

# GenAI's own rule for these model types, which foreign packages without a config.json leave us to know.
_GENAI_SWITCHES = {"phi3": 4096, "phimoe": 4096, "phi3small": 8192}


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
        return f"{self.manifest.model}/{self.manifest.target}" if self.manifest else self.folder.name

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
        penalty = _number(stated, "repetition_penalty", 1.0)
        if not stated.get("do_sample"):
            return Sampling(temperature=0.0, repetition_penalty=penalty)
        return Sampling(
            temperature=_number(stated, "temperature", 1.0),
            top_k=int(_number(stated, "top_k", Sampling.top_k)),
            top_p=_number(stated, "top_p", 1.0),
            repetition_penalty=penalty,
        )


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
    loaded = {file: read_json(folder / file) for file in ("genai_config.json", "generation_config.json")}
    return Package(folder, manifest, loaded["genai_config.json"], loaded["generation_config.json"], contract)


def _missing(folder: Path, names: Iterable[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]


def _number(table: Mapping[str, Any], key: str, default: float) -> float:
    value = table.get(key)
    return default if value is None else float(value)
