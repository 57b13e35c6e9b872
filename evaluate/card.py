"""The model card of a repository of packages, from their manifests."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import jinja2

from ..configs import Manifest, UsageError
from ..configs.extras import extra_for
from ..configs.sizes import size

_TEMPLATE = "model_card.md.jinja"
_PROVIDERS = {"cpu": "CPU, mobile", "cuda": "CUDA", "dml": "DirectML", "webgpu": "WebGPU, browsers"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FIGURES = ("mean_kl", "top1_agreement", "perplexity_ratio", "greedy_agreement")
# Every Phi-3, Phi-3.5 and Phi-4-mini model is under the MIT licence: huggingface.co/microsoft/<model>, LICENSE.
_MIT = re.compile(r"microsoft/Phi-(3|3\.5|4)-mini.*|microsoft/Phi-3-medium.*", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """A package and its folder in the repository."""

    path: str
    manifest: Manifest


def base_model(manifest: Manifest, named: str | None) -> str | None:
    """Return the hub id of what a package was made from: as named, or its source where that is one."""
    if named is not None:
        if not _HUB_ID.fullmatch(named):
            raise UsageError(f"the base model must be a hub id (organization/name), got {named!r}")
        return named
    # Only hub checkpoints have a revision; a relative path may look like a hub id.
    return manifest.source if manifest.revision and _HUB_ID.fullmatch(manifest.source) else None


def licence_of(model: str | None, named: str | None) -> str:
    """Return the licence's short name on the hub.

    Raises:
        UsageError: none was named, and the model's is not known.

    """
    if named:
        return named
    if model and _MIT.fullmatch(model):
        return "mit"
    raise UsageError(
        f"the licence of {model or 'the base model'} is not known here; name it as the hub does, such as "
        "--licence apache-2.0 (see the base model's card)"
    )


def model_card(
    repository: str, entries: Sequence[Entry], *, base: str | None, licence: str, licence_link: str | None = None
) -> str:
    """Return the Markdown of a repository's README.md, with the metadata that the hub reads.

    Args:
        repository: `organization/name`.
        entries: every package of the repository.
        base: hub id of the original model.
        licence: as the hub calls it.
        licence_link: where its text is, for a licence that the hub has no name for.

    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    text = files(__package__ or "phi3_onnx.evaluate").joinpath("data", _TEMPLATE).read_text(encoding="utf-8")
    packages = [_package(entry) for entry in sorted(entries, key=lambda entry: entry.path)]
    first = entries[0].manifest
    return environment.from_string(text).render(
        repository=repository,
        model=first.model,
        revision=first.revision,
        adapter=first.adapter,
        base_model=base,
        licence=licence,
        licence_link=licence_link,
        version=version("phi3-onnx"),
        packages=packages,
        extra=extra_for(packages[0]["provider_name"]),
        elsewhere=any(package["elsewhere"] for package in packages),
    )


def _package(entry: Entry) -> dict[str, Any]:
    manifest = entry.manifest
    total = sum(file.size for file in manifest.files.values())
    return {
        "path": entry.path,
        "target": manifest.target.name,
        "provider_name": manifest.provider,
        "provider": _PROVIDERS[manifest.provider],
        "weights": manifest.target.weights,
        "io_dtype": manifest.io_dtype,
        "size": size(total),
        "bits_per_weight": f"{manifest.bits_per_weight:.2f}",
        **_verification(manifest),
    }


def _verification(manifest: Manifest) -> dict[str, Any]:
    found: Mapping[str, Any] | None = manifest.verification
    if found is None:
        return {"result": "not verified", "measured_on": "-", "elsewhere": False, **dict.fromkeys(_FIGURES, "-")}
    values = {row["name"]: row["value"] for row in found["rows"]}
    ran_on = str(found["provider"]).removesuffix("ExecutionProvider")
    return {
        "result": "passed" if found["passed"] else "**failed**",
        "measured_on": ran_on,
        "elsewhere": ran_on.lower() != manifest.provider,
        **{name: _figure(name, values.get(name)) for name in _FIGURES},
    }


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}%" if name.endswith("agreement") else f"{value:.3g}"
