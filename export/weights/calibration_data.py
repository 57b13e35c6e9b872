"""What calibrated quantization needs from outside: text, turned into token sequences, and a folder to continue from."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ...configs import ModelConfig, Quantization, SourceError, Target, UsageError
from ...configs.locks import lock_owner, try_lock
from ...configs.progress import Progress, silent
from ...configs.store import cache_folder
from ...quantize.calibrate import QuantizedLayer, calibrate
from ...quantize.samples import draw_samples
from ..sources.checkpoint import Checkpoint

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrationOptions:
    """Which text calibrates, and how much of it."""

    text: Path | None = None
    """A `.txt` file, or a `.jsonl` one with a `text` or `messages` in each line; None takes the project's own."""
    num_samples: int | None = None
    """Sequences to draw; None takes what the method needs."""
    sequence_length: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Calibration:
    """Token sequences, and what to say of them."""

    options: CalibrationOptions
    samples: np.ndarray
    """int64 [num_samples, sequence_length]"""

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says: where the text came from, its token ids' sha256, the layers' arithmetic."""
        from ...quantize.precision import has_fast_products

        options = asdict(self.options)
        options["text"] = str(self.options.text) if self.options.text else "phi3-onnx's own (quantize/data)"
        return {
            **options,
            "tokens": int(self.samples.size),
            "arithmetic": "bfloat16" if has_fast_products() else "float32",
            "sha256": hashlib.sha256(self.samples.tobytes()).hexdigest(),
        }


def calibration_bytes(config: ModelConfig) -> int:
    """Return the memory that calibrating takes beyond a plain export: one layer and what its inputs add up to."""
    hidden, ffn, attention = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
    weights = config.qkv_size * hidden + attention * hidden + 3 * ffn * hidden
    grams = 2 * hidden**2 + attention**2 + ffn**2
    return 4 * (2 * weights + 3 * grams)


def prepare_calibration(checkpoint: Checkpoint, options: CalibrationOptions, quantization: Quantization) -> Calibration:
    """Read the text and cut it into token sequences, as many as the options or the method ask for.

    Raises:
        UsageError: the text cannot be read, or there is too little of it.

    """
    limit = checkpoint.config.max_position
    if not 1 <= options.sequence_length <= limit:
        raise UsageError(f"a sequence must have 1 to {limit} tokens (the context), got {options.sequence_length}")
    num_samples = options.num_samples or quantization.num_samples
    encode, render = _encoder(checkpoint)
    texts = _own_texts() if options.text is None else read_texts(options.text, render)
    samples = draw_samples(
        texts,
        encode,
        num_samples=num_samples,
        sequence_length=options.sequence_length,
        seed=options.seed,
    )
    return Calibration(replace(options, num_samples=num_samples), samples)


def short_calibration(checkpoint: Checkpoint, quantization: Quantization) -> np.ndarray:
    """Return the few token sequences that show how large keys and values get, int64 [samples, tokens]."""
    options = CalibrationOptions(num_samples=2, sequence_length=min(256, checkpoint.config.max_position))
    return prepare_calibration(checkpoint, options, quantization).samples


def calibrated_layers(
    checkpoint: Checkpoint,
    target: Target,
    calibration: Calibration,
    progress: Progress = silent,
) -> Iterator[tuple[int, QuantizedLayer]]:
    """Quantize the decoder layers of a checkpoint as `target` says, in order.

    A run that was killed continues where it was: finished layers lie in the cache folder until all of them are done. A
    run beside one of the same model and settings works apart from it, and says so in the log.
    """
    from ...quantize.method import layer_quantizer

    assert target.quantization is not None
    quantizer = layer_quantizer(checkpoint.config, target.quantization, target.io_dtype)
    with _work_folder(cache_folder() / "calibration", _key(checkpoint, target, calibration)) as work:
        yield from calibrate(
            checkpoint.config,
            checkpoint.read,
            calibration.samples,
            quantizer,
            work=work,
            progress=lambda done, total: progress("calibrating", done, total, "layers"),
        )
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _work_folder(parent: Path, key: str) -> Iterator[Path]:
    """Give a folder, `<key>` or `<key>-2` and so on, that no other live process works in, and keep it so meanwhile."""
    parent.mkdir(parents=True, exist_ok=True)
    work, number = parent / key, 1
    while (lock := try_lock(lock_file := work.with_name(f"{work.name}.lock"))) is None:
        _log.warning("%s calibrates the same model; this run works apart from it", lock_owner(lock_file) or "a process")
        number += 1
        work = parent / f"{key}-{number}"
    with lock:
        if not work.exists():
            _take_over(parent, key, work)
        yield work


def _take_over(parent: Path, key: str, work: Path) -> None:
    """Give `work` what a run left that was killed while it worked apart."""
    for left in parent.glob(f"{key}-*"):
        if left.is_dir() and left != work and (lock := try_lock(left.with_name(f"{left.name}.lock"))):
            with lock:
                if work.exists():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.replace(work)


def _key(checkpoint: Checkpoint, target: Target, calibration: Calibration) -> str:
    """Name the work folder after everything that decides what is in it."""
    parts: Mapping[str, Any] = {
        "source": str(checkpoint.source),
        "revision": checkpoint.revision,
        "adapter": asdict(checkpoint.adapter) if checkpoint.adapter else None,
        "weights": _first_rows(checkpoint),
        "model": asdict(checkpoint.config),
        "quantization": asdict(target.quantization) if target.quantization else None,
        "io_dtype": target.io_dtype,
        "samples": calibration.describe()["sha256"],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _first_rows(checkpoint: Checkpoint) -> str:
    """Return the sha256 of every tensor's first row: another checkpoint, or fine-tune, in the same place has others."""
    digest = hashlib.sha256()
    for name in checkpoint.config.tensor_shapes():
        digest.update(checkpoint.read(name, slice(0, 1)).tobytes())
    return digest.hexdigest()


def _own_texts() -> list[str]:
    from ...quantize.texts import own_texts

    return own_texts()


def read_texts(path: Path, render: Callable[[list[Any]], str]) -> list[str]:
    """Return the texts of a file: the whole of it, or those of a `.jsonl` file's lines.

    Args:
        path: the file.
        render: makes one text of a conversation.

    Raises:
        UsageError: it cannot be read, or a line holds something else.

    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text: {error}") from error
    if path.suffix != ".jsonl":
        return [content]
    texts: list[str] = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            texts.append(entry["text"] if "text" in entry else render(entry["messages"]))
            texts[-1].encode()  # a number has none, and half a character no UTF-8
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(
                f'{path}, line {number}: expected {{"text": "..."}} or {{"messages": [...]}}: {error}'
            ) from error
    return texts


def _encoder(checkpoint: Checkpoint) -> tuple[Callable[[str], list[int]], Callable[[list[Any]], str]]:
    """Return what encodes a text without special tokens, and what renders a conversation."""
    assets = checkpoint.assets()
    try:
        tokenizer = Tokenizer.from_buffer(assets["tokenizer.json"])
    except Exception as error:  # tokenizers raises plain Exception
        raise SourceError(f"{checkpoint.source}: tokenizer.json cannot be read: {error}") from error

    def render(messages: list[Any]) -> str:
        import tempfile

        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as folder:
            for name, content in assets.items():
                (Path(folder) / name).write_bytes(content)
            loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return str(loaded.apply_chat_template(messages, tokenize=False))

    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids, render
