"""The tokenizer's files of a checkpoint folder, as they go into a package: as they lie, but for two values."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...configs.errors import SourceError
from ...configs.files import parse_object

TOKENIZER, TOKENIZER_CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_OTHERS = (
    TEMPLATE,
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)

# Classes that every client reads, each measured: onnxruntime-genai 0.13.1 and 0.18, transformers 4.57 and 5.23 give the
# ids of tokenizer.json itself. For SentencePiece BPE with byte fallback (Phi-3's kind), GenAI 0.13.1 does so with
# LlamaTokenizer only; for byte-level BPE, both GenAI do so with any class but LlamaTokenizer.
SENTENCEPIECE_CLASS, BYTE_LEVEL_CLASS = "LlamaTokenizer", "PreTrainedTokenizerFast"


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Return the tokenizer's files and chat template of a checkpoint folder, by name.

    `tokenizer_config.json` is changed where a client of the package could not read it (see `portable_config`);
    a chat template that only lies inside a JSON file is also returned as `chat_template.jinja`.

    Raises:
        SourceError: there is no tokenizer, or one of its files is damaged.

    """
    files = {name: _read(folder / name) for name in (TOKENIZER, *_OTHERS) if (folder / name).is_file()}
    if TOKENIZER not in files:
        # Not converted from tokenizer.model: transformers 4.57 and 5.23 make different tokenizers of Phi-3's.
        older = [name for name in ("tokenizer.model", "vocab.json") if name in files]
        found = f"{older[0]} alone does not say how text is split" if older else "nor an older kind of one"
        raise SourceError(f"{folder} has no {TOKENIZER} ({found}); take it from the original checkpoint")
    tokenizer = parse_object(files[TOKENIZER], folder / TOKENIZER, SourceError)
    config: dict[str, Any] = {}
    if (folder / TOKENIZER_CONFIG).is_file():
        files[TOKENIZER_CONFIG] = _read(folder / TOKENIZER_CONFIG)
        config = parse_object(files[TOKENIZER_CONFIG], folder / TOKENIZER_CONFIG, SourceError)
    portable = portable_config(config, tokenizer)
    if portable != config:
        files[TOKENIZER_CONFIG] = to_json(portable)
    if TEMPLATE not in files and (template := _template(config, files, folder)):
        files[TEMPLATE] = template.encode("utf-8")
    return files


def portable_config(config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Return `tokenizer_config.json` so that old and new clients read it; mostly that is as it was.

    Changed are a `tokenizer_class` that is missing, that old clients do not know (`TokenizersBackend`, which
    transformers 5 writes), or that makes GenAI tokenize wrongly without a word (`LlamaTokenizer` for byte-level BPE);
    and a list of `extra_special_tokens` (transformers 5 writes that, too; 4.57 fails on it) gets its older name.
    """
    changed = dict(config)
    byte_level = "ByteLevel" in json.dumps([tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")])
    declared = str(config.get("tokenizer_class") or "TokenizersBackend")
    wrong_kind = byte_level and declared.removesuffix("Fast") == "LlamaTokenizer"
    if declared == "TokenizersBackend" or wrong_kind:
        changed["tokenizer_class"] = BYTE_LEVEL_CLASS if byte_level else SENTENCEPIECE_CLASS
    if isinstance(config.get("extra_special_tokens"), list):
        extra = changed.pop("extra_special_tokens")
        changed.setdefault("additional_special_tokens", extra)
    return changed


def check_tokenizer(files: Mapping[str, bytes], vocab_size: int, where: str) -> None:
    """Check that the model has a row for every token.

    Raises:
        SourceError: tokenizer.json does not hold a tokenizer, or has ids that the model has not.

    """
    try:
        tokenizer = json.loads(files[TOKENIZER])
        vocabulary = tokenizer["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        top = max([int(i) for i in [*ids, *(token["id"] for token in tokenizer.get("added_tokens") or [])]], default=-1)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise SourceError(f"{where}: {TOKENIZER} is not a tokenizer's ({type(error).__name__}: {error})") from error
    if top >= vocab_size:
        raise SourceError(
            f"{where}: {TOKENIZER} has token ids up to {top}, but the model has {vocab_size} rows; "
            "take the tokenizer that belongs to the model"
        )


def to_json(table: Mapping[str, Any]) -> bytes:
    """Return a table as the bytes of a JSON file."""
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _template(config: Mapping[str, Any], files: Mapping[str, bytes], folder: Path) -> str | None:
    template = config.get("chat_template")
    if template is None and "chat_template.json" in files:
        table = parse_object(files["chat_template.json"], folder / "chat_template.json", SourceError)
        template = table.get("chat_template")
    if isinstance(template, list):  # several templates with names; "default" is the one for chats
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    return template if isinstance(template, str) else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
