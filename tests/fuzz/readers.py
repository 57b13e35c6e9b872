"""Everything that reads a file which someone else made: where a valid one lies, how it changes, how it is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st
from phi3_onnx.cli import foreign, show
from phi3_onnx.cli.prompts import read_jsonl
from phi3_onnx.configs import parse_target, read_manifest
from phi3_onnx.export import open_checkpoint
from phi3_onnx.export.sources.safetensors_file import SafetensorsFile
from phi3_onnx.export.weights.calibration_data import read_texts
from phi3_onnx.runtime.package import open_package
from phi3_onnx.runtime.text.template import ChatTemplate, read_template
from phi3_onnx.runtime.text.tokenizer import Tokenizer

from .mutations import binaries, json_texts, templates

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}]
REQUEST = {
    "id": 1,
    "messages": MESSAGES,
    "system": "s",
    "raw": False,
    "max_tokens": 3,
    "temperature": 0.5,
    "stop": ["a", "b"],
    "logprobs": 2,
    "seed": 7,
}


@dataclass(frozen=True)
class World:
    """Folders of valid files; each reader works on a copy, in which one file is another."""

    checkpoint: Path
    package: Path
    foreign: Path
    """The same without a manifest, so that what it says of its files stops nobody."""
    adapter: Path
    gguf: Path


@dataclass(frozen=True)
class Reader:
    """How one kind of file is read."""

    place: Callable[[World], Path]
    """The valid file."""
    read: Callable[[Path, World], object]
    """Reads the file of this path, whose neighbours are those of the valid one."""
    contents: Callable[[Path], st.SearchStrategy[bytes]] = lambda valid: json_texts(valid.read_text(encoding="utf-8"))
    """Contents that it may have, from the valid file's path."""


def _binary(valid: Path) -> st.SearchStrategy[bytes]:
    return binaries(valid.read_bytes())


def _text(valid: Path) -> st.SearchStrategy[bytes]:
    data = valid.read_bytes()
    return binaries(data, len(data))


def _lines(valid: Path) -> st.SearchStrategy[bytes]:
    return st.lists(json_texts(valid.read_text(encoding="utf-8")), min_size=1, max_size=3).map(b"\n".join)


def _package(path: Path, _world: World) -> None:
    package = open_package(path.parent)
    assert package.name and package.made_for and package.kv_bytes_per_token > 0 and package.context_length > 0
    assert package.contract.past_names() and package.sampling and package.end_tokens is not None
    foreign.rows(foreign.describe(path.parent))


def _manifest(path: Path, _: World) -> None:
    manifest = read_manifest(path.parent)
    show.rows(path.parent, manifest)
    show.tensor_lines(manifest)
    list(show.verification_lines(manifest.verification))
    manifest.to_json()


def _tokenizer(path: Path, _: World) -> None:
    tokenizer = Tokenizer(path.parent)
    ids = tokenizer.encode("What is the capital of France? <|end|>\n12")
    tokenizer.decode(ids)
    template = read_template(path.parent, tokenizer.config, tokenizer.special_tokens)
    if template:
        template.render(MESSAGES)


def _template(path: Path, _: World) -> None:
    ChatTemplate(path.read_text(encoding="utf-8", errors="replace"), {"bos_token": "<s>"}).render(MESSAGES)


def _checkpoint(path: Path, _: World) -> None:
    checkpoint = open_checkpoint(path.parent)
    for name in list(checkpoint.config.tensor_shapes())[:3]:
        checkpoint.read(name)


def _gguf(path: Path, _: World) -> None:
    checkpoint = open_checkpoint(path)
    for name in list(checkpoint.config.tensor_shapes())[:3]:
        checkpoint.read(name)


def _adapter(path: Path, world: World) -> None:
    open_checkpoint(world.checkpoint, adapter=path.parent)


READERS: Mapping[str, Reader] = {
    "config.json": Reader(lambda w: w.checkpoint / "config.json", _checkpoint),
    "generation_config.json": Reader(lambda w: w.checkpoint / "generation_config.json", _checkpoint),
    "checkpoint-tokenizer.json": Reader(lambda w: w.checkpoint / "tokenizer.json", _checkpoint),
    "checkpoint-tokenizer_config.json": Reader(lambda w: w.checkpoint / "tokenizer_config.json", _checkpoint),
    "safetensors": Reader(lambda w: w.checkpoint / "model.safetensors", lambda path, _: SafetensorsFile(path), _binary),
    "gguf": Reader(lambda w: w.gguf, _gguf, _binary),
    "adapter_config.json": Reader(lambda w: w.adapter / "adapter_config.json", _adapter),
    "package-config.json": Reader(lambda w: w.foreign / "config.json", _package),
    "package-generation_config.json": Reader(lambda w: w.foreign / "generation_config.json", _package),
    "genai_config.json": Reader(lambda w: w.foreign / "genai_config.json", _package),
    "manifest": Reader(lambda w: w.package / "phi3_onnx.json", _manifest),
    "tokenizer.json": Reader(lambda w: w.package / "tokenizer.json", _tokenizer),
    "tokenizer_config.json": Reader(lambda w: w.package / "tokenizer_config.json", _tokenizer),
    "template": Reader(
        lambda w: w.package / "chat_template.jinja",
        _template,
        lambda valid: _text(valid) | templates().map(str.encode),
    ),
    "graph": Reader(lambda w: w.foreign / "model.onnx", _package, _binary),
    "target": Reader(
        lambda w: w.package / "target.toml",
        lambda path, _: parse_target("mine", path.read_text(encoding="utf-8", errors="replace")),
        _text,
    ),
    "requests": Reader(
        lambda w: w.package / "requests.jsonl", lambda path, _: read_jsonl(path, None, False, {}), _lines
    ),
    "calibration": Reader(
        lambda w: w.package / "texts.jsonl", lambda path, _: read_texts(path, lambda m: str(m)), _lines
    ),
}
