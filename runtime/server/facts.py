"""What protocols tell of a model beyond its name: read in the engine's process, where its package is open."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from ..model import Model
from ..package import Package


@dataclass(frozen=True)
class Facts:
    """Of one package; what it does not say is empty or 0."""

    family: str = ""
    """The kind of model, such as `phi3`."""
    num_layers: int = 0
    num_parameters: int = 0
    quantization: str = ""
    """The target that the package was made for."""
    size: int = 0
    """Bytes of its files."""
    modified: str = ""
    """When it was made, or last changed, as ISO 8601 has it."""
    digest: str = ""
    """SHA-256 of the names and sums of its files, in hexadecimal digits."""
    template: str = ""
    """The chat template, in Jinja."""


def facts_of(model: Model) -> Facts:
    """Return what a loaded model's package says."""
    package, manifest = model.package, model.package.manifest
    return Facts(
        family=package.contract.model_type,
        num_layers=package.contract.num_layers,
        num_parameters=manifest.num_parameters if manifest else 0,
        quantization=manifest.target.name if manifest else "",
        size=sum(file.stat().st_size for file in package.folder.iterdir() if file.is_file()),
        modified=manifest.created if manifest else _changed(package),
        digest=_digest(package),
        template=model.template.source if model.template else "",
    )


def _changed(package: Package) -> str:
    return datetime.fromtimestamp((package.folder / package.contract.filename).stat().st_mtime, UTC).isoformat()


def _digest(package: Package) -> str:
    if not package.manifest:
        return ""
    lines = (f"{entry.sha256} {name}\n" for name, entry in sorted(package.manifest.files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
