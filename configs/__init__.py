"""Targets, model architectures, the package manifest and the store: plain data that every other part reads."""

from .errors import (
    EngineError,
    OutputError,
    PackageError,
    Phi3OnnxError,
    ProviderError,
    SelfTestError,
    SourceError,
    UsageError,
    VerificationError,
)
from .manifest import AdapterEntry, Manifest, TensorSummary, read_manifest
from .model import LongRope, ModelConfig, parse_model_config
from .store import default_package, find_package, list_packages, store_folder
from .target import (
    METHODS,
    Quantization,
    Target,
    Thresholds,
    WeightScheme,
    find_target,
    parse_target,
    targets,
)
from .variant import identified, requantized, same_package, with_quantization

__all__ = [
    "METHODS",
    "AdapterEntry",
    "EngineError",
    "LongRope",
    "Manifest",
    "ModelConfig",
    "OutputError",
    "PackageError",
    "Phi3OnnxError",
    "ProviderError",
    "Quantization",
    "SelfTestError",
    "SourceError",
    "Target",
    "TensorSummary",
    "Thresholds",
    "UsageError",
    "VerificationError",
    "WeightScheme",
    "default_package",
    "find_package",
    "find_target",
    "identified",
    "list_packages",
    "parse_model_config",
    "parse_target",
    "read_manifest",
    "requantized",
    "same_package",
    "store_folder",
    "targets",
    "with_quantization",
]
