"""Short names of models, fit for a folder of the store."""

import re
from pathlib import Path

# llama.cpp's file names end in the type of the weights: `.Q4_K_M`, `-q4`, `-fp16`.
_WEIGHT_TYPE = re.compile(r"[-._](i?q\d\w*|f(p)?(16|32)|bf16|mxfp4)$", re.IGNORECASE)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_GENERIC = {"model", "ggml-model", "weights", "consolidated"}


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form `organization/name`; so may a relative path."""
    return _HUB_ID.fullmatch(name) is not None


def short_name(name: str) -> str:
    """Return a name with everything that not every file system takes replaced, such as `Phi-3-mini-4k-instruct`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"


def folder_name(folder: Path) -> str:
    """Return what a checkpoint folder is called; a snapshot in the hub's cache is called as its repository is."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name or folder.resolve().name


def gguf_name(stem: str, general_name: str | None) -> str:
    """Return a GGUF's short name: its file name without the type of the weights, or its own name if that says nothing.

    The file name comes first since `general.name` often is a training run's (`Smollm2 135M 8k Lc100K Mix1 Ep2`).
    """
    stem = _WEIGHT_TYPE.sub("", stem)
    return short_name(general_name if stem.lower() in _GENERIC and general_name else stem)
