"""Whether a package reads text as its checkpoint does: token ids, chat template, end tokens, against Hugging Face."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...configs import PackageError, ProviderError, SourceError
from ...configs.errors import first_line
from ...configs.files import read_json
from ...export.package.genai_config import end_tokens
from ...export.sources.checkpoint import Checkpoint
from ...runtime.package import Package
from ...runtime.providers.imports import import_genai
from ...runtime.text.template import read_template
from ...runtime.text.tokenizer import Tokenizer
from .corpus import Chat
from .finding import Finding

Encode = Callable[[str], list[int]]


def hugging_face_tokenizer(checkpoint: Checkpoint) -> Any:
    """Return transformers' own tokenizer of a checkpoint, made from its files and no remote code.

    Raises:
        SourceError: transformers cannot load it.

    """
    from transformers import AutoTokenizer

    with TemporaryDirectory(prefix="phi3-onnx-") as name:
        folder = Path(name)
        for asset, content in checkpoint.assets().items():
            (folder / asset).write_bytes(content)
        (folder / "config.json").write_text('{"model_type": "phi3"}', encoding="utf-8")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # transformers raises whatever its parsers do
            reason = first_line(error)
            raise SourceError(f"{checkpoint.source}: transformers cannot load its tokenizer: {reason}") from error
    tokenizer.model_max_length = sys.maxsize  # or it warns about texts that are longer than the context
    return tokenizer


def compare_token_ids(tokenizer: Any, package: Package, texts: Sequence[str]) -> Finding:
    """Compare vocabulary and token ids with Hugging Face's, as our runtime gives them.

    Args:
        tokenizer: what `hugging_face_tokenizer` returned.
        package: the package.
        texts: what to encode. Our runtime encodes each twice: as it stands, and with what the tokenizer puts around it.

    """
    expected = {special: [_ids(tokenizer, text, special) for text in texts] for special in (False, True)}
    differences: list[str] = []
    notes: list[str] = []
    compared = 0
    for special in (False, True):
        try:
            name, encode = _our_encoder(package.folder, special)
        except PackageError as error:
            differences.append(str(error))
            compared += 1
            continue
        differences += _differences(name, encode, texts, expected[special])
        compared += len(texts)
        notes.append(f"{name}: {len(texts)} texts")
    vocabulary = list(_vocabulary_differences(tokenizer, package.folder))
    return Finding(compared + 2, (*vocabulary, *differences), tuple(notes))


def compare_client_tokens(tokenizer: Any, package: Package, texts: Sequence[str]) -> Finding:
    """Compare token ids with Hugging Face's as ONNX Runtime GenAI's own tokenizer gives them, which our runtime leaves.

    Args:
        tokenizer: what `hugging_face_tokenizer` returned.
        package: the package.
        texts: what to encode, as it stands.

    Returns:
        What was found; nothing is compared where ONNX Runtime GenAI is not installed.

    """
    try:
        name, encode = _genai_encoder(package.folder)
    except ProviderError:
        return Finding(0, (), ("onnxruntime-genai is not installed, so its tokenizer was not compared",))
    except PackageError as error:
        return Finding(1, (str(error),))
    expected = [_ids(tokenizer, text, False) for text in texts]
    return Finding(len(texts), tuple(_differences(name, encode, texts, expected)), (f"{name}: {len(texts)} texts",))


def _vocabulary_differences(tokenizer: Any, folder: Path) -> Iterator[str]:
    """Say where pieces and merges differ: one that no text of ours needs would go unnoticed otherwise."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    ours = read_json(folder / "tokenizer.json", optional=True).get("model", {})
    theirs = json.loads(backend.to_str())["model"] if backend is not None else {}
    if theirs.get("type", "BPE") != ours.get("type", "BPE"):
        return  # the same tokens written another way; the texts have to show it
    for kind in ("vocab", "merges"):
        found, wanted = _listed(ours.get(kind, [])), _listed(theirs.get(kind, []))
        if found != wanted and theirs:
            at = _first_difference(found, wanted)
            values = " and ".join(ascii(values[at] if at < len(values) else None) for values in (found, wanted))
            yield f"tokenizer.json: {kind} differ from entry {at} on: {values} in package and checkpoint"


def _listed(entries: Any) -> list[Any]:
    # Merges were once written "a b", and are ["a", "b"] today; a vocabulary's order in the file means nothing.
    if isinstance(entries, dict):
        return sorted(entries.items(), key=lambda entry: entry[1])
    return [" ".join(entry) if _is_pair(entry) else entry for entry in entries]


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, list) and all(isinstance(piece, str) for piece in entry)


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special).input_ids)


def _our_encoder(folder: Path, special: bool) -> tuple[str, Encode]:
    tokenizer = Tokenizer(folder)
    name = "phi3-onnx with special tokens" if special else "phi3-onnx"
    return name, lambda text: tokenizer.encode(text, special=special)


def _genai_encoder(folder: Path) -> tuple[str, Encode]:
    genai = import_genai()
    name = f"onnxruntime-genai {genai.__version__}"
    try:
        try:
            tokenizer = genai.Tokenizer(str(folder))
        except TypeError:  # before 0.14 or so it takes a model, which has to be loaded for it
            tokenizer = genai.Tokenizer(genai.Model(str(folder)))
    except RuntimeError as error:
        raise PackageError(f"{name} cannot load the tokenizer: {first_line(error)}") from error
    return name, lambda text: tokenizer.encode(text).tolist()


def _differences(name: str, encode: Encode, texts: Sequence[str], expected: Sequence[list[int]]) -> Iterable[str]:
    for text, wanted in zip(texts, expected, strict=True):
        found = encode(text)
        if found != wanted:
            at = _first_difference(found, wanted)
            yield (
                f"{name} gives {_around(found, at)} for {_short(text)}, Hugging Face {_around(wanted, at)} "
                f"(from token {at} on)"
            )


def _first_difference(found: Sequence[Any], wanted: Sequence[Any]) -> int:
    pairs = enumerate(zip(found, wanted, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(found), len(wanted)))


def _around(ids: Sequence[int], at: int) -> str:
    return f"{ids[at : at + 4]}" if len(ids) <= at + 4 else f"{ids[at : at + 4]}"[:-1] + ", ...]"


def _short(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def compare_chat_template(tokenizer: Any, package: Package, chats: Sequence[Chat]) -> Finding:
    """Compare rendered conversations with those of Hugging Face's `apply_chat_template`.

    Args:
        tokenizer: what `hugging_face_tokenizer` returned.
        package: the package, whose template our runtime renders, with the opening of an answer at the end.
        chats: the conversations. One that the template refuses must be refused by both.

    """
    try:
        reader = Tokenizer(package.folder)
        template = read_template(package.folder, reader.config, reader.special_tokens)
    except PackageError as error:
        return Finding(1, (str(error),))
    if template is None or tokenizer.chat_template is None:
        if template is tokenizer.chat_template:
            return Finding(1, (), ("the model has no chat template",))
        has, lacks = ("checkpoint", "package") if template is None else ("package", "checkpoint")
        return Finding(1, (f"the {has} has a chat template, the {lacks} none",))
    differences: list[str] = []
    for chat in chats:
        found, wanted = _rendered(template.render, chat), _rendered(partial(render_reference, tokenizer), chat)
        if found != wanted:
            differences.append(_template_difference(found, wanted))
    return Finding(len(chats), tuple(differences), (f"{len(chats)} conversations",))


def _rendered(render: Callable[[Chat], str], chat: Chat) -> str | None:
    try:
        return render(chat)
    except Exception:  # templates raise what they like; both sides have to refuse the same conversations
        return None


def _template_difference(found: str | None, wanted: str | None) -> str:
    if found is None or wanted is None:
        refuses, takes = ("the package", "Hugging Face") if found is None else ("Hugging Face", "the package")
        return f"{refuses} refuses a conversation that {takes} renders as {_short(found or wanted or '')}"
    at = _first_difference(found, wanted)
    return (
        f"the package renders {_short(found[at:])}, Hugging Face {_short(wanted[at:])}, "
        f"after {_short(wanted[max(0, at - 30) : at])}"
    )


def render_reference(tokenizer: Any, chat: Chat) -> str:
    """Return a conversation as Hugging Face renders it, with the opening of an answer at the end."""
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


def compare_end_tokens(checkpoint: Checkpoint, package: Package) -> Finding:
    """Compare the tokens that end an answer, in both files that clients read, with the checkpoint's."""
    wanted = end_tokens(checkpoint.config, checkpoint.generation_config)
    stated = package.generation.table.get("eos_token_id")
    files: dict[str, Iterable[int]] = {"genai_config.json": package.contract.eos_token_ids}
    if stated is not None:
        files["generation_config.json"] = stated if isinstance(stated, list) else [stated]
    differences = tuple(
        f"{name} has {sorted(found)}, the checkpoint {sorted(wanted)}"
        for name, found in files.items()
        if set(found) != set(wanted)
    )
    return Finding(len(files), differences, (f"{len(wanted)} tokens in {' and '.join(files)}",))
