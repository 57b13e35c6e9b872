"""A local Hugging Face folder: config.json, one or many safetensors files, and the tokenizer beside them."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...configs import ModelConfig, parse_model_config
from ...configs.errors import SourceError
from ...configs.files import read_json
from .adapter.config import ADAPTER_CONFIG
from .checkpoint import Checkpoint
from .fusion import Parts, check_parts, fused_parts, read_rows, split_parts
from .naming import folder_name, short_name
from .problems import summarize
from .safetensors_file import SafetensorsFile
from .tokenizer_files import check_tokenizer, read_tokenizer_files

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What only quantized checkpoints have beside, or instead of, their weights (AWQ, GPTQ, FP8, bitsandbytes).
_QUANTIZED = (".qweight", ".qzeros", ".scales", ".weight_scale", ".weight_scale_inv", ".SCB", ".absmax", ".g_idx")
_SHOWN = 5


class FolderCheckpoint(Checkpoint):
    """A checkpoint folder as transformers saves it: Phi-3's, or a Llama-like one that is fused while it is read."""

    def __init__(self, folder: Path, *, source: str, revision: str | None, model: str) -> None:
        """Open a folder and check everything but the values of its weights; see `open_folder`."""
        table = _read_config(folder, source)
        self.source, self.revision, self.model = source, revision, model
        self.config = parse_model_config(table, str(folder / "config.json"))
        self._files = _open_weights(folder)
        self._parts = _find_parts(self.config, self._files)
        _check_tensors(folder, self.config, self._parts, self._files)
        self.generation_config = _read_generation_config(folder, self.config)
        self._assets = read_tokenizer_files(folder)
        check_tokenizer(self._assets, self.config.vocab_size, str(folder))

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Return a tensor, or some of its rows, as a new float32 array; see `Checkpoint.read`."""
        return read_rows(self._parts[name], rows, self._read_into)

    def assets(self) -> Mapping[str, bytes]:
        """Return the tokenizer's files; see `Checkpoint.assets`."""
        return self._assets

    def _read_into(self, name: str, start: int, out: np.ndarray) -> None:
        self._files[name].read_into(name, start, out)


def open_folder(
    folder: Path, *, source: str | None = None, revision: str | None = None, model: str | None = None
) -> Checkpoint:
    """Open a local Hugging Face folder.

    `source`, `revision` and `model` say where it comes from if that is not the folder itself (a hub id's snapshot).

    Raises:
        SourceError: the folder is not a checkpoint, is damaged or incomplete, or of a kind that is not supported.

    """
    return FolderCheckpoint(
        folder, source=source or str(folder), revision=revision, model=model or short_name(folder_name(folder))
    )


def shard_names(index: Path) -> list[str]:
    """Return the names of the weight files that an index (`model.safetensors.index.json`) lists, each once, sorted.

    Raises:
        SourceError: the index cannot be read, or lists no files.

    """
    weight_map = read_json(index, SourceError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise SourceError(f"{index} is damaged: it has no weight_map of tensor names to file names")
    return sorted(set(weight_map.values()))


def _read_config(folder: Path, source: str) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            model = read_json(folder / ADAPTER_CONFIG, SourceError).get("base_model_name_or_path") or "MODEL"
            raise SourceError(
                f"{source} holds an adapter (PEFT) without its model; to export both together: "
                f"phi3-onnx export {shlex.quote(str(model))} --adapter {shlex.quote(source)}"
            )
        if ggufs := sorted(folder.glob("*.gguf")):
            raise SourceError(f"{folder} has no config.json; to export its GGUF file, name that: {ggufs[0]}")
        raise SourceError(f"{folder} is not a checkpoint: it has no config.json")
    table = read_json(folder / "config.json", SourceError)
    if (quantization := table.get("quantization_config")) is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise SourceError(
            f"{folder} is quantized already ({method}); quantized checkpoints cannot be exported, use the original"
        )
    return table


def _open_weights(folder: Path) -> dict[str, SafetensorsFile]:
    """Return the file that holds each tensor."""
    problems: list[str] = []
    files: dict[str, SafetensorsFile] = {}
    for path in _weight_files(folder):
        try:
            file = SafetensorsFile(path)
        except SourceError as error:
            problems.append(str(error))
            continue
        files.update(dict.fromkeys(file.tensors, file))
    if problems:
        raise SourceError(summarize(problems))
    return files


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():  # transformers prefers it to an index, too
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        names = shard_names(folder / INDEX)
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise SourceError(
                f"{folder} is incomplete: {len(missing)} of {len(names)} weight files are missing: "
                f"{', '.join(missing[:_SHOWN])}; get them again"
            )
        return [folder / name for name in names]
    for pattern in ("*.bin", "*.pt", "*.pth"):
        if found := sorted(folder.glob(pattern)):
            raise SourceError(
                f"{folder} has its weights in {found[0].name} only, a pickle that can run code when it is loaded; "
                "convert it to safetensors (save_pretrained), or take a revision that has them"
            )
    raise SourceError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}")


def _find_parts(config: ModelConfig, names: Mapping[str, object]) -> Parts:
    split = "model.layers.0.self_attn.q_proj.weight" in names
    return split_parts(config) if split else fused_parts(config)


def _check_tensors(folder: Path, config: ModelConfig, parts: Parts, files: Mapping[str, SafetensorsFile]) -> None:
    if quantized := [name for name in files if name.endswith(_QUANTIZED)]:
        raise SourceError(
            f"{folder} is quantized already (it has {quantized[0]}); "
            "quantized checkpoints cannot be exported, use the original"
        )
    stored = {name: file.tensors[name] for name, file in files.items()}
    problems = check_parts(parts, {name: tensor.shape for name, tensor in stored.items()})
    needed = {part.name for group in parts.values() for part in group}
    problems += [
        f"{name} is stored as {stored[name].dtype} (quantized checkpoints cannot be exported; use the original)"
        for name in sorted(needed & stored.keys())
        if not stored[name].is_float
    ]
    problems += [
        f"{name} has no place in Phi-3's layout (supported: no biases, adapters merged)"
        for name in stored
        if name.endswith(".bias") or ".lora_" in name
    ]
    if "lm_head.weight" in needed and "lm_head.weight" not in stored:
        problems.append("config.json says tie_word_embeddings=false, so lm_head.weight is needed")
    if problems:
        raise SourceError(f"{folder} does not fit its config.json: {summarize(problems)}")


def _read_generation_config(folder: Path, config: ModelConfig) -> dict[str, object]:
    path = folder / "generation_config.json"
    table: dict[str, object] = dict(read_json(path, SourceError)) if path.is_file() else {}
    ends = table.get("eos_token_id")
    if ends is None:
        ends = list(config.eos_token_ids)
    ends = ends if isinstance(ends, list) else [ends]
    if not all(isinstance(end, int) and 0 <= end < config.vocab_size for end in ends):
        raise SourceError(f"{path}: eos_token_id must be token ids below {config.vocab_size}, got {ends}")
    table["eos_token_id"] = ends
    for key, value in (("bos_token_id", config.bos_token_id), ("pad_token_id", config.pad_token_id)):
        if value is not None:
            table.setdefault(key, value)
    return table
