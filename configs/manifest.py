"""The manifest of a package, `phi3_onnx.json`: what it was made from, how, and how close it is to its source."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import file_digest
from pathlib import Path
from typing import Any

from .errors import PackageError, UsageError
from .files import read_json
from .target import (
    IoDtype,
    Provider,
    Quantization,
    Target,
    WeightScheme,
    describe_scheme,
    published,
    table_of,
    target_of,
)
from .variant import check_names, folder_name, identified

MANIFEST_NAME = "phi3_onnx.json"
SELF_TEST_NAME = "selftest.json"
"""Texts that a package replays where it is loaded first; `runtime.proof` reads it."""
FORMAT = 2
"""Since 2 the manifest holds the whole target; before, it held its name, and how its weights were quantized."""


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 of one file of a package."""

    size: int
    sha256: str


@dataclass(frozen=True)
class AdapterEntry:
    """The PEFT adapter that was merged into the weights."""

    path: str
    """As it was named: a folder or a hub id."""
    revision: str | None
    """The commit of a hub adapter."""
    sha256: str
    """Of its safetensors file."""
    config_sha256: str
    """Of its adapter_config.json, which has the scaling."""
    summary: str
    """What it changes, such as `LoRA, rank 16, 64 matrices`."""

    @property
    def sums(self) -> tuple[str, str]:
        """What tells it from another adapter in the same place."""
        return self.sha256, self.config_sha256

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


@dataclass(frozen=True)
class TensorSummary:
    """How one weight matrix was stored."""

    shape: tuple[int, ...]
    """[out features, in features]"""
    bits: int
    block_size: int | None
    """None for a tensor that is not quantized."""
    symmetric: bool | None
    relative_error: float | None = None
    """||W - dequantized(W)|| / ||W||, Frobenius norms; None where not measured."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the quantizer reports beyond that (method, ratios, whether a search was kept), as JSON values."""

    @property
    def storage(self) -> str:
        """Say how it is stored, such as `int4 block 32 symmetric` or `16 bits`."""
        if self.block_size is None:
            return f"{self.bits} bits"
        return describe_scheme(self.bits, self.block_size, bool(self.symmetric))


@dataclass(frozen=True)
class Manifest:
    """The content of `phi3_onnx.json`."""

    target: Target
    """What the package was made for, with the name and thresholds that it had then."""
    source: str
    revision: str | None
    model: str
    """The model's short name, such as `Phi-3-mini-4k-instruct`."""
    created: str
    """UTC, ISO 8601."""
    versions: Mapping[str, str]
    """Package name -> version of what made this."""
    ops: Mapping[str, int]
    """Operator -> how many nodes of it the graph has."""
    num_parameters: int
    bits_per_weight: float
    """Bytes of all weights (scales and zero points included) * 8 / parameters."""
    tensors: Mapping[str, TensorSummary]
    files: Mapping[str, FileEntry]
    calibration: Mapping[str, Any] | None = None
    """On which text the weights were quantized; None where no data was needed."""
    norms: Mapping[str, Any] | None = None
    """Which norms are computed in float32, and what was measured at them; None where the provider needs no such."""
    verification: Mapping[str, Any] | None = None
    """What `phi3-onnx verify` measured last; None where it has not run."""
    adapter: AdapterEntry | None = None
    """What was merged into the weights of `source`."""
    format: int = FORMAT

    @property
    def provider(self) -> Provider:
        """The provider that the package was made for."""
        return self.target.provider

    @property
    def io_dtype(self) -> IoDtype:
        """Dtype of logits, KV cache and everything that is not quantized."""
        return self.target.io_dtype

    @property
    def origin(self) -> str:
        """Say what it was made from: the source, its revision, and the adapter."""
        return origin(self.source, self.revision, self.adapter)

    @property
    def verified(self) -> bool | None:
        """Whether the last verification passed; None where none has run."""
        return None if self.verification is None else bool(self.verification.get("passed"))

    def to_json(self) -> str:
        """Return the manifest as the text of its file."""
        table = {**asdict(self), "target": table_of(self.target)}
        return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def origin(source: str, revision: str | None, adapter: AdapterEntry | None) -> str:
    """Say which weights are meant, such as `microsoft/Phi-3-mini-4k-instruct@c0ffee with adapter ./lora`."""
    at = f"@{revision}" if revision else ""
    return f"{source}{at}" + (f" with adapter {adapter}" if adapter else "")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the package in `folder`.

    Raises:
        PackageError: there is none, or it is damaged or from a newer version.

    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        raise PackageError(f"{folder} has no {MANIFEST_NAME}: not a package that phi3-onnx made")
    table = read_json(path, remedy="export the package again")
    try:
        if table["format"] > FORMAT:
            raise PackageError(f"{path} has format {table['format']}, this version reads {FORMAT}; upgrade phi3-onnx")
        tensors = {
            name: TensorSummary(**{**entry, "shape": tuple(entry["shape"])})
            for name, entry in table.pop("tensors").items()
        }
        files = {name: FileEntry(**entry) for name, entry in table.pop("files").items()}
        adapter = table.pop("adapter", None)
        if table["format"] < FORMAT:
            table |= _from_first_format(table)
        else:
            table["target"] = check_names(target_of(table["target"]))
        adapter = adapter and AdapterEntry(**adapter)
        manifest = Manifest(**table, tensors=tensors, files=files, adapter=adapter)
        _check_types(table, tensors, files)
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise PackageError(f"{path} is damaged ({error}); export the package again") from error
    for name in files:
        # Whatever reads the files goes by these names: none of them may lead out of the folder.
        if name in ("", ".", "..") or any(mark in name for mark in ("/", "\\", ":", "\0")):
            raise PackageError(f"{path} names {name!r:.80}, which is not a file of the package; export it again")
    return manifest


_KINDS: Mapping[str, Any] = {
    "source": str,
    "revision": str | None,
    "model": str,
    "created": str,
    "versions": dict,
    "ops": dict,
    "num_parameters": int,
    "bits_per_weight": int | float,
    "calibration": dict | None,
    "norms": dict | None,
    "verification": dict | None,
    "format": int,
}


def _check_types(
    table: Mapping[str, Any], tensors: Mapping[str, TensorSummary], files: Mapping[str, FileEntry]
) -> None:
    """Check what a manifest holds to the figures that are printed.

    Raises:
        TypeError: a value is of another kind.

    """
    for key, kind in _KINDS.items():
        if key in table and not isinstance(table[key], kind):
            raise TypeError(f"{key} is {table[key]!r:.80}")
    if not all(isinstance(value, str) for value in table["versions"].values()):
        raise TypeError("versions must be texts")
    if not all(isinstance(value, int) for value in table["ops"].values()):
        raise TypeError("ops must be counts")
    for name, tensor in tensors.items():
        numbers = (*tensor.shape, tensor.bits)
        if not all(isinstance(value, int) for value in numbers) or not isinstance(tensor.details, dict):
            raise TypeError(f"the entry of {name!r:.80} makes no sense")
        if not isinstance(tensor.relative_error, int | float | None):
            raise TypeError(f"the error of {name!r:.80} is {tensor.relative_error!r:.80}")
    for name, entry in files.items():
        if not isinstance(entry.size, int) or not isinstance(entry.sha256, str):
            raise TypeError(f"the entry of {name!r:.80} makes no sense")
    verification = table.get("verification")
    for row in (verification or {}).get("rows", []):
        if not isinstance(row["name"], str) or not isinstance(row["value"], int | float | None):
            raise TypeError(f"the verification's row {row!r:.80} makes no sense")
        if row["passed"] not in (True, False, None):
            raise TypeError(f"the verification's row {row!r:.80} makes no sense")


def _from_first_format(table: dict[str, Any]) -> dict[str, Any]:
    """Return what a manifest of format 1 holds of its target and calibration, and take it out of `table`."""
    name, provider, io_dtype = table.pop("target"), table.pop("provider"), table.pop("io_dtype")
    stated = table.pop("quantization", None)
    quantization = None
    if stated is not None:
        quantization = Quantization(
            stated["method"],
            _scheme(stated["weights"]),
            stated["accuracy_level"],
            tuple((pattern, _scheme(text)) for pattern, text in stated["overrides"].items()),
        )
    # A changed target was still called by the published name then, and what its weights became tells it apart. A target
    # of one's own left nothing else.
    base = published(name) or Target(folder_name(name), "", provider, io_dtype)
    target = replace(base, provider=provider, io_dtype=io_dtype, quantization=quantization)
    return {"target": identified(target), "calibration": (stated or {}).get("calibration"), "format": FORMAT}


def _scheme(text: str) -> WeightScheme:
    """Read a scheme from the words of its `__str__`."""
    match = re.fullmatch(r"int([48]) block (\d+) (a?symmetric)", text)
    if match is None:
        raise ValueError(f"{text!r} is not a scheme")
    return WeightScheme(8 if match[1] == "8" else 4, int(match[2]), match[3] == "symmetric")


def check_files(folder: Path, manifest: Manifest, *, hashes: bool = False) -> None:
    """Compare the files of a package with its manifest: sizes always, sha256 sums where asked (reads every byte).

    Without sums the self-test is left out: what reads it says what is wrong with it, and `verify` makes it again.

    Raises:
        PackageError: files are missing or differ; the message names each.

    """
    problems: list[str] = []
    for name, entry in manifest.files.items():
        path = folder / name
        if name == SELF_TEST_NAME and not hashes:
            continue
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (size := path.stat().st_size) != entry.size:
            problems.append(f"{name} has {size} bytes, expected {entry.size}")
        elif hashes and file_sha256(path) != entry.sha256:
            problems.append(f"{name} has another sha256 than when it was made")
    if problems:
        raise PackageError(f"{folder} is damaged: {'; '.join(problems)}; export the package again")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
