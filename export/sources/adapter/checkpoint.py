"""A checkpoint with a PEFT adapter merged into its weights, a few rows at a time, while they are read."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ....configs.errors import SourceError
from ....configs.files import read_json
from ....configs.manifest import AdapterEntry, file_sha256
from ..checkpoint import Checkpoint
from ..naming import folder_name, is_hub_id, short_name
from ..safetensors_file import SafetensorsFile
from ..tensor_bytes import CHUNK_VALUES, require_finite
from ..tokenizer_files import TOKENIZER, TOKENIZER_CONFIG, check_tokenizer, read_tokenizer_files
from .config import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MERGE_WITH_PEFT, AdapterConfig, parse_adapter_config
from .tensors import EMBEDDING, Change, LowRank, Tokens, find_changes

_PICKLE = "adapter_model.bin"
# Mirrors of a model for training: the same weights, quantized by the trainer.
_MIRROR = re.compile(r"([-_.](unsloth|bnb|4bit|8bit|int4|int8|nf4|gptq|awq|gguf|hf))+$")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class AdapterCheckpoint(Checkpoint):
    """What a base checkpoint and an adapter make together: W + scaling * B @ A in float32, or DoRA's rows.

    Reads what it is asked for and nothing more; the adapter's tensors stay on disk, too.
    """

    def __init__(self, base: Checkpoint, folder: Path, *, named: str, revision: str | None) -> None:
        """Open an adapter's folder and check it against the base; see `open_adapter`."""
        self._base = base
        self.source, self.revision = base.source, base.revision
        self.model = f"{base.model}-{short_name((named.rpartition('/')[2] if revision else '') or folder_name(folder))}"
        settings = _read_settings(folder, named)
        _check_base(base, settings, named)
        self._file = SafetensorsFile(_weights_path(folder, named))
        changes = find_changes(settings, self._file.tensors, base.config, named)
        self.config, self._changes = changes.config, changes.by_tensor
        self._rows = {name: shape[0] for name, shape in self.config.tensor_shapes().items()}
        self._check_values()
        self._column_factors = {
            change.magnitude: self._find_column_factors(change)
            for change in self._changes.get(f"{EMBEDDING}.weight", ())
            if isinstance(change, LowRank) and change.magnitude is not None
        }
        self._assets, self.generation_config = _tokenizer(base, folder, named)
        sums = (file_sha256(self._file.path), file_sha256(folder / ADAPTER_CONFIG))
        self.adapter = AdapterEntry(named, revision, *sums, changes.summary)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Return a tensor, or some of its rows, as a new float32 array; see `Checkpoint.read`."""
        start, stop, step = (rows or slice(None)).indices(self._rows[name])
        if step != 1:
            raise ValueError(f"rows are read in order: expected a slice of step 1, got {rows}")
        out = self._base.read(self._name_in_base(name), slice(start, stop))
        for change in self._changes.get(name, ()):
            self._apply(change, start, stop, out)
        return out

    def _apply(self, change: Change, start: int, stop: int, out: np.ndarray) -> None:
        """Change the rows from `start` to `stop` of a tensor of the base, which lie in `out`."""
        if isinstance(change, Tokens):
            for at, row in enumerate(change.rows):
                if start <= row < stop:
                    self._file.read_into(change.name, at, out[row - start : row - start + 1])
            return
        begin, end = max(start, change.first_row), min(stop, change.first_row + change.rows)
        if begin >= end:
            return
        part = out[begin - start : end - start]
        if isinstance(change, LowRank):
            self._add(change, begin - change.first_row, part)
            self._normalize(change, begin - change.first_row, part)
        else:
            self._file.read_into(change.name, begin - change.first_row, part)

    def assets(self) -> Mapping[str, bytes]:
        """Return the tokenizer's files, the adapter's own where it has them; see `Checkpoint.assets`."""
        return self._assets

    def _name_in_base(self, name: str) -> str:
        tied = self._base.config.tie_embeddings and name == "lm_head.weight"
        return "model.embed_tokens.weight" if tied else name

    def _add(self, change: LowRank, first: int, out: np.ndarray) -> None:
        """Add a change's rows `first`, `first + 1`, … to those of the base in `out`."""
        a = self._read(change.a)
        whole_b = self._read(change.b) if change.transposed else None
        step = max(1, 4 * CHUNK_VALUES // out.shape[1])
        for i in range(0, len(out), step):
            rows = out[i : i + step]
            at = first + i
            if whole_b is None:
                delta = self._read(change.b, at, len(rows)) @ a
            else:
                delta = (whole_b @ a[:, at : at + len(rows)]).T
            rows += delta * np.float32(change.scaling)

    def _normalize(self, change: LowRank, first: int, rows: np.ndarray) -> None:
        """Bring rows `first`, `first + 1`, ... of the sum to the norms that DoRA trained, in place."""
        if change.magnitude is None:
            return
        if change.transposed:
            rows *= self._column_factors[change.magnitude]
            return
        # arXiv:2402.09353, equation 5; PyTorch keeps a matrix transposed, so its columns are our rows.
        with np.errstate(divide="ignore", invalid="ignore"):
            rows *= (self._read(change.magnitude, first, len(rows)) / np.linalg.norm(rows, axis=1))[:, None]
        require_finite(rows, f"{change.magnitude}, divided by the norm of its row,", self._file.path)

    def _find_column_factors(self, change: LowRank) -> np.ndarray:
        """Return what DoRA multiplies the columns of an embedding with, float32 [columns]; reads the base's once."""
        assert change.magnitude is not None
        magnitude = self._read(change.magnitude)
        squares, name = np.zeros(len(magnitude)), f"{EMBEDDING}.weight"
        step = max(1, 4 * CHUNK_VALUES // len(magnitude))
        for first in range(0, change.rows, step):
            rows = self._base.read(name, slice(first, first + step))
            self._add(change, first, rows)
            squares += np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = (magnitude / np.sqrt(squares)).astype(np.float32)
        require_finite(factors, f"{change.magnitude}, divided by the norm of its column,", self._file.path)
        return factors

    def _read(self, name: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        shape = self._file.tensors[name].shape
        out = np.empty((shape[0] if rows is None else rows, *shape[1:]), np.float32)
        self._file.read_into(name, start, out)
        return out

    def _check_values(self) -> None:
        """Read every tensor once: a training that diverged shows before minutes of work, not in their midst."""
        for name, tensor in self._file.tensors.items():
            if not tensor.is_float or not tensor.shape:
                continue
            step = max(1, 4 * CHUNK_VALUES * tensor.shape[0] // max(1, int(np.prod(tensor.shape, dtype=np.int64))))
            for start in range(0, tensor.shape[0], step):
                self._read(name, start, min(step, tensor.shape[0] - start))


def open_adapter(
    base: Checkpoint, folder: Path, *, named: str | None = None, revision: str | None = None
) -> Checkpoint:
    """Open a PEFT folder (adapter_config.json, adapter_model.safetensors) as a change of `base`.

    `named` and `revision` say where it comes from if that is not the folder itself (a hub id's snapshot). Its own
    tokenizer and chat template, where the folder has them, take the place of the base's.

    Raises:
        SourceError: the folder is not an adapter, is damaged or incomplete, of a kind that cannot be merged here, or
            made for another model.

    """
    return AdapterCheckpoint(base, folder, named=named or str(folder), revision=revision)


def _read_settings(folder: Path, named: str) -> AdapterConfig:
    if (folder / ADAPTER_CONFIG).is_file():
        return parse_adapter_config(read_json(folder / ADAPTER_CONFIG, SourceError), f"{named}/{ADAPTER_CONFIG}")
    if folder.is_file():
        raise SourceError(f"{named} is a file; an adapter is a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}")
    if not folder.is_dir():
        raise SourceError(f"the adapter {named} does not exist")
    if (folder / "config.json").is_file():
        raise SourceError(f"{named} is a model of its own, not an adapter; export that: phi3-onnx export {named}")
    if below := sorted(folder.glob(f"*/{ADAPTER_CONFIG}"), key=lambda path: path.stat().st_mtime):
        raise SourceError(f"{named} has no {ADAPTER_CONFIG}; its newest adapter is {below[-1].parent}, name that")
    raise SourceError(f"{named} is not an adapter: it has no {ADAPTER_CONFIG}")


def _weights_path(folder: Path, named: str) -> Path:
    path = folder / ADAPTER_WEIGHTS
    if path.is_file():
        return path
    if (folder / _PICKLE).is_file():
        raise SourceError(
            f"{named} has its weights in {_PICKLE} only, a pickle that can run code when it is loaded; "
            "load it with PEFT and save it again (save_pretrained writes safetensors)"
        )
    raise SourceError(f"{named} is incomplete: it has no {ADAPTER_WEIGHTS}; get it again")


def _check_base(base: Checkpoint, settings: AdapterConfig, named: str) -> None:
    """Compare hub ids: models of the same shapes may have other weights. A folder's name says nothing."""
    wanted = settings.base_model
    on_hub = base.revision is not None and is_hub_id(base.source) and not Path(base.source).exists()
    if not on_hub or wanted is None or not is_hub_id(wanted):
        return
    if _plain_name(wanted) != _plain_name(base.source):
        raise SourceError(
            f"{named} was trained on {wanted}, not on {base.source}: phi3-onnx export {wanted} --adapter {named} "
            "(if both are the same model, name a folder that holds it)"
        )
    trained_at = settings.revision or ""
    if wanted == base.source and _COMMIT.fullmatch(trained_at) and trained_at != base.revision:
        raise SourceError(
            f"{named} was trained on revision {trained_at} of {wanted}, got {base.revision}; "
            f"name it: --revision {trained_at}"
        )


def _plain_name(hub_id: str) -> str:
    return _MIRROR.sub("", hub_id.rpartition("/")[2].lower())


def _tokenizer(base: Checkpoint, folder: Path, named: str) -> tuple[Mapping[str, bytes], Mapping[str, object]]:
    """Return the tokenizer's files and the generation settings: fine-tunes bring chat templates and end tokens."""
    if not (folder / TOKENIZER).is_file():
        return base.assets(), base.generation_config
    files = read_tokenizer_files(folder)
    try:
        check_tokenizer(files, base.config.vocab_size, named)
    except SourceError as error:
        raise SourceError(f"{error}; if its vocabulary was resized for the training, {MERGE_WITH_PEFT}") from error
    ends = base.generation_config["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    end = _end_token(files)
    if end is None or end in ends:
        return files, base.generation_config
    return files, {**base.generation_config, "eos_token_id": [*ends, end]}


def _end_token(files: Mapping[str, bytes]) -> int | None:
    """Return the id of the token that the tokenizer's settings call eos_token."""
    token = json.loads(files[TOKENIZER_CONFIG]).get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    added = json.loads(files[TOKENIZER]).get("added_tokens") or []
    return next((int(entry["id"]) for entry in added if entry.get("content") == content), None)
